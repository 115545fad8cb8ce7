package workspace

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Reasons for quarantine.
const (
	ReasonCredential = "credential" // init found one in it
	ReasonProtected  = "protected"  // see Protected
	ReasonSetuid     = "setuid"     // or setgid
	ReasonSpecial    = "special"    // device, FIFO, socket
	ReasonLink       = "link"       // absolute, or leads outside
	ReasonConflict   = "conflict"   // the operator changed it meanwhile
)

// A Report says what CopyBack did. Paths are relative, slash-separated and
// sorted.
type Report struct {
	Created     []string      `json:"created,omitempty"`
	Changed     []string      `json:"changed,omitempty"`
	Deleted     []string      `json:"deleted,omitempty"`
	Quarantined []Quarantined `json:"quarantined,omitempty"`
}

// A Quarantined path did not go back. If it was a regular file, and not held
// back for a credential, it lies in the quarantine directory under the same
// path, mode 0600.
type Quarantined struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

// CopyBack brings what changed in the copy since the baseline back to
// original, and puts the rest into quarantineDir, which is made if something
// must go there. flagged are the paths that init objects to; a directory
// stands for all below it, "." for everything. A flagged path that is missing
// from the copy, because init removed it, stays in original. Nobody may write to copy or quarantineDir
// meanwhile: the sandbox is gone.
//
// New files belong to the owner of original and get the caller's umask;
// changed ones keep owner and mode but for the execute bits. On an error part
// of the changes may have come back; the report says which.
func CopyBack(copyDir, original string, b *Baseline, flagged []string, quarantineDir string) (Report, error) {
	r := returner{baseline: b, flagged: flagged, quarantine: quarantineDir, seen: make(map[string]bool)}
	var err error
	if r.from, err = openTree(copyDir); err != nil {
		return Report{}, fmt.Errorf("copying workspace back: %w", err)
	}
	defer r.from.close()
	if r.to, err = openTree(original); err != nil {
		return Report{}, fmt.Errorf("copying workspace back: %w", err)
	}
	defer r.to.close()
	var st unix.Stat_t
	if err := unix.Fstat(r.to.root, &st); err != nil {
		return Report{}, fmt.Errorf("copying workspace back: %w", err)
	}
	r.uid, r.gid = int(st.Uid), int(st.Gid)
	// 1. Look at everything, touch nothing: a copy over the limits brings
	//    nothing back. 2. Delete, deepest first, so that a directory can
	//    become a file. 3. Create and change, parents first.
	var entries []entry
	err = r.from.walk(func(_ int, _ string, e entry) error {
		entries = append(entries, e)
		r.seen[e.path] = true
		return nil
	})
	if err == nil {
		err = r.delete(entries)
	}
	for _, e := range entries {
		if err != nil {
			break
		}
		err = r.bring(e)
	}
	r.sort()
	if err != nil {
		return r.report, fmt.Errorf("copying workspace back: %w", err)
	}
	return r.report, nil
}

type returner struct {
	from, to   *tree
	baseline   *Baseline
	flagged    []string
	quarantine string
	uid, gid   int
	seen       map[string]bool
	report     Report
}

func (r *returner) sort() {
	slices.Sort(r.report.Created)
	slices.Sort(r.report.Changed)
	slices.Sort(r.report.Deleted)
	slices.SortFunc(r.report.Quarantined, func(a, b Quarantined) int { return strings.Compare(a.Path, b.Path) })
}

// delete removes what the baseline had and the copy has no more, or has as
// another type, unless the operator changed it or it is protected.
func (r *returner) delete(entries []entry) error {
	var gone []string
	now := make(map[string]byte, len(entries))
	for _, e := range entries {
		now[e.path] = e.kind
	}
	for p, old := range r.baseline.entries {
		if kind, ok := now[p]; !ok || kind != old.kind && kind != 0 {
			gone = append(gone, p)
		}
	}
	slices.SortFunc(gone, func(a, b string) int { return strings.Compare(b, a) }) // children before parents
	for _, p := range gone {
		if r.isFlagged(p) || r.wasRenamed(p) { // by init, not by the agent
			r.set(p, ReasonCredential)
			continue
		}
		if Protected(p) {
			r.set(p, ReasonProtected)
			continue
		}
		removed, err := r.remove(r.baseline.entries[p])
		if err != nil {
			return fmt.Errorf("deleting %q: %w", p, err)
		}
		switch {
		case removed && !r.seen[p]:
			r.report.Deleted = append(r.report.Deleted, p)
		case !removed && !r.seen[p]:
			r.set(p, ReasonConflict)
		}
	}
	return nil
}

// remove deletes one entry of the original if it is still what it was. A
// directory that is not empty stays.
func (r *returner) remove(old entry) (bool, error) {
	dir, name, err := r.to.parent(old.path)
	if err != nil {
		return false, nil // its directory is gone or has become a link
	}
	defer unix.Close(dir)
	same, exists, err := r.unchanged(dir, name, old)
	if err != nil || !exists {
		return !exists, err
	}
	if !same {
		return false, nil
	}
	flags := 0
	if old.kind == 'd' {
		flags = unix.AT_REMOVEDIR
	}
	err = unix.Unlinkat(dir, name, flags)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return false, nil
	}
	return err == nil, err
}

// unchanged compares an entry of the original with the baseline's.
func (r *returner) unchanged(dir int, name string, old entry) (same, exists bool, err error) {
	now, err := look(dir, name, old.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, false, nil
	}
	if err != nil {
		return false, true, err
	}
	if now.kind != old.kind || now.kind == 'f' && now.size != old.size || now.target != old.target && now.kind == 'l' {
		return false, true, nil
	}
	if now.kind != 'f' {
		return true, true, nil
	}
	f, err := openFile(dir, name, now)
	if err != nil {
		return false, true, err
	}
	defer f.Close()
	sum, _, err := hashOf(f)
	return sum == old.sum, true, err
}

// bring handles one entry of the copy.
func (r *returner) bring(e entry) error {
	old, known := r.baseline.entries[e.path]
	fromDir, name, err := r.from.parent(e.path)
	if err != nil {
		return err
	}
	defer unix.Close(fromDir)
	if known && old.kind == e.kind {
		same, err := r.sameAsBefore(fromDir, name, &e, old)
		if err != nil || same {
			return err
		}
	}
	if reason := r.verdict(e); reason != "" {
		return r.putAside(fromDir, name, e, reason)
	}
	ok, err := r.put(fromDir, name, e, old, known)
	if err != nil {
		return fmt.Errorf("bringing back %q: %w", e.path, err)
	}
	switch {
	case !ok:
		return r.putAside(fromDir, name, e, ReasonConflict)
	case known:
		r.report.Changed = append(r.report.Changed, e.path)
	default:
		r.report.Created = append(r.report.Created, e.path)
	}
	return nil
}

// sameAsBefore compares the copy's entry with the baseline. An unchanged file
// is left alone whatever it is: it came from the operator. One that can't be
// read by its mode was changed in that, and its content is read all the same
// when the caller is root.
func (r *returner) sameAsBefore(dir int, name string, e *entry, old entry) (bool, error) {
	switch e.kind {
	case 'd':
		return true, nil
	case 'l':
		return e.target == old.target, nil
	}
	if e.mode&(fs.ModeSetuid|fs.ModeSetgid) != 0 || e.mode&0o111 != old.mode&0o111 || e.size != old.size {
		return false, nil
	}
	f, err := openFile(dir, name, *e)
	if errors.Is(err, fs.ErrPermission) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	sum, _, err := hashOf(f)
	return sum == old.sum, err
}

func (r *returner) set(p, reason string) {
	r.report.Quarantined = append(r.report.Quarantined, Quarantined{Path: p, Reason: reason})
}

// put writes one entry into the original. False: the operator has something
// else in its place.
func (r *returner) put(fromDir int, name string, e, old entry, known bool) (bool, error) {
	dir, _, err := r.to.parent(e.path)
	if err != nil {
		return false, nil // no such directory there, or a link in its place
	}
	defer unix.Close(dir)
	now, err := look(dir, name, e.path)
	exists := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if e.kind == 'd' {
		if exists {
			return now.kind == 'd', nil
		}
		return true, r.makeDir(dir, name)
	}
	if exists {
		if now.kind != e.kind {
			return false, nil
		}
		same, _, err := r.unchanged(dir, name, old)
		if err != nil || !known || !same {
			return false, err
		}
	}
	return true, r.replace(fromDir, name, dir, e, now, exists)
}

// replace makes the entry under a temporary name and renames it into place.
func (r *returner) replace(fromDir int, name string, dir int, e, now entry, exists bool) (err error) {
	tmp := ".sealed-" + rand.Text()
	if e.kind == 'l' {
		err = unix.Symlinkat(e.target, dir, tmp)
	} else {
		err = copyFile(fromDir, name, dir, tmp, 0o666|e.mode&0o111, &e, func(fd int) error {
			return r.finish(fd, e, now, exists)
		})
	}
	if err == nil {
		err = unix.Renameat(dir, tmp, dir, name)
	}
	if err != nil {
		_ = unix.Unlinkat(dir, tmp, 0)
	}
	return err
}

// finish gives a new file its owner and, if it takes another's place, that
// one's owner and mode.
func (r *returner) finish(fd int, e, now entry, exists bool) error {
	uid, gid := r.uid, r.gid
	if exists {
		uid, gid = now.uid, now.gid
	}
	if os.Geteuid() == 0 {
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return err
		}
	}
	if !exists {
		return nil
	}
	mode := now.mode.Perm() &^ 0o111
	if e.mode&0o111 != 0 {
		mode |= mode >> 2 & 0o111
	}
	return unix.Fchmod(fd, uint32(mode))
}

// makeDir makes a directory that belongs to the owner of the original.
func (r *returner) makeDir(dir int, name string) error {
	if err := unix.Mkdirat(dir, name, 0o777); err != nil || os.Geteuid() != 0 {
		return err
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fchown(fd, r.uid, r.gid)
}

// putAside copies a regular file into the quarantine, readable for its owner,
// executable for nobody. Anything else is only reported; so is a file with a
// credential, which has no place on the host's disk.
func (r *returner) putAside(fromDir int, name string, e entry, reason string) error {
	r.set(e.path, reason)
	if e.kind != 'f' || reason == ReasonCredential {
		return nil
	}
	dst := filepath.Join(r.quarantine, filepath.FromSlash(e.path))
	if err := os.MkdirAll(filepath.Dir(dst), 0o700); err != nil {
		return fmt.Errorf("quarantining: %w", err)
	}
	dir, err := unix.Open(filepath.Dir(dst), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("quarantining: %w", err)
	}
	defer unix.Close(dir)
	if err := copyFile(fromDir, name, dir, name, 0o600, &e, nil); err != nil && !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("quarantining: %w", err)
	}
	return nil
}
