package spireattestor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"sync"
)

const (
	// initMode is the one accepted mode of init: no reading for anyone but
	// root, which is what makes the running process not dumpable.
	initMode fs.FileMode = 0o711
	// maxInit bounds the file that is hashed.
	maxInit = 256 << 20
)

// identify reads what tells this life of the process from any other.
func (a *Attestor) identify(p process, pid int) (identity, error) {
	boot, err := a.proc.BootID()
	if err != nil {
		return identity{}, deny(ReasonProc, err)
	}
	stat, err := p.Read("stat")
	if err != nil {
		return identity{}, deny(ReasonGone, err)
	}
	start, err := parseStart(stat)
	if err != nil {
		return identity{}, deny(ReasonProc, err)
	}
	ns, err := p.Stat("ns/pid")
	if err != nil {
		return identity{}, deny(ReasonProc, err)
	}
	return identity{PID: pid, Start: start, Namespace: ns.Ino, BootID: boot}, nil
}

// measure checks everything about the process but its identity.
func (a *Attestor) measure(ctx context.Context, cfg Config, p process, d *descriptor) error {
	st, err := readStatus(p)
	if err != nil {
		return err
	}
	if err := a.firstOfNamespace(st, d.identity); err != nil {
		return err
	}
	isolation, err := isolationOf(cfg, d.launcherUID, st)
	if err != nil {
		return err
	}
	if isolation != d.isolation || st.UIDs[0] != d.uid {
		return deny(ReasonIdentity, nil)
	}
	uidMap, err := readUIDMap(p, d.uid)
	if err != nil {
		return err
	}
	if !slices.Equal(uidMap, d.uidMap) {
		return deny(ReasonIdentity, nil)
	}
	digest, err := a.measureExe(ctx, cfg, p)
	if err != nil {
		return err
	}
	if digest != d.initSHA256 {
		return deny(ReasonDigest, nil)
	}
	if err := notDumpable(cfg, p); err != nil {
		return err
	}
	if err := a.holdsTrustFile(cfg, p); err != nil {
		return err
	}
	return a.alone(ctx, cfg, d)
}

func readStatus(p process) (procStatus, error) {
	data, err := p.Read("status")
	if err != nil {
		return procStatus{}, deny(ReasonGone, err)
	}
	st, err := parseStatus(data)
	if err != nil {
		return procStatus{}, deny(ReasonProc, err)
	}
	return st, nil
}

// firstOfNamespace: process 1 of a pid namespace below ours, and untraced. A
// tracer that attached before execve keeps its hold on the registers of an
// unreadable executable, though not on its memory.
func (a *Attestor) firstOfNamespace(st procStatus, id identity) error {
	own, err := a.proc.OwnPIDNamespace()
	if err != nil {
		return deny(ReasonProc, err)
	}
	if len(st.NSpid) < 2 || st.NSpid[0] != id.PID || st.NSpid[len(st.NSpid)-1] != 1 || id.Namespace == own {
		return deny(ReasonNotFirst, nil)
	}
	if st.Tracer != 0 {
		return deny(ReasonTraced, nil)
	}
	return nil
}

// readUIDMap accepts a map of exactly the process's own uid. Anything more
// lets the sandbox act as another user of the host, in the worst case as root.
func readUIDMap(p process, uid uint32) ([]idRange, error) {
	data, err := p.Read("uid_map")
	if err != nil {
		return nil, deny(ReasonGone, err)
	}
	m, err := parseIDMap(data)
	if err != nil {
		return nil, deny(ReasonProc, err)
	}
	if len(m) == 0 {
		return nil, deny(ReasonUIDMap, errNotYet)
	}
	if len(m) != 1 || m[0].Outside != uid || m[0].Count != 1 {
		return nil, deny(ReasonUIDMap, nil)
	}
	return m, nil
}

// errNotYet marks a refusal that a sandbox under construction may outgrow.
var errNotYet = errors.New("not set up")

// settling reports whether waiting may help: the uid map is still empty, or
// the process still executes bubblewrap, which is not init by mode or digest.
func settling(err error) bool {
	var denied *DeniedError
	if !errors.As(err, &denied) {
		return false
	}
	return denied.Reason == ReasonExe || denied.Reason == ReasonDigest || errors.Is(err, errNotYet)
}

// measureExe returns the digest of the file the process executes. The link is
// the kernel's: it leads to the inode that was executed, whatever name that
// has in whatever mount namespace, and even after it was unlinked.
func (a *Attestor) measureExe(ctx context.Context, cfg Config, p process) (string, error) {
	exe, err := p.Open("exe")
	if err != nil {
		return "", deny(ReasonExe, err)
	}
	defer exe.Close()
	before, err := exe.Facts()
	if err != nil {
		return "", deny(ReasonProc, err)
	}
	// Mode compares type and special bits too: regular, not setuid.
	if before.Mode != initMode || before.UID != cfg.initOwner() || !before.LocalFS || before.Size > maxInit {
		return "", denyf(ReasonExe, "mode %v, uid %d, local file system %t", before.Mode, before.UID, before.LocalFS)
	}
	digest, err := a.digests.of(ctx, exe, before)
	if err != nil {
		return "", deny(ReasonExe, err)
	}
	if !slices.Contains(cfg.InitSHA256, digest) {
		return "", denyf(ReasonDigest, "sha256 %s", digest)
	}
	return digest, nil
}

// digestCache remembers digests of root's files by inode and times. That is
// honest because the file's bytes can change only through its inode, which
// root alone may write to; a change by anyone would move ctime, which no
// system call sets; and the look-up starts at the inode being executed, not at
// a path, so no directory has a say in what is hashed. For a user's file none
// of this is relied upon: it is hashed on every call.
type digestCache struct {
	mu sync.Mutex
	m  map[facts]string
}

// maxDigests bounds the cache; hosts have one or two versions of init.
const maxDigests = 64

func (c *digestCache) of(ctx context.Context, o object, before facts) (string, error) {
	cacheable := before.UID == 0
	c.mu.Lock()
	digest, ok := c.m[before]
	c.mu.Unlock()
	if ok && cacheable {
		return digest, nil
	}
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(contextReader{ctx, o}, maxInit+1))
	if err != nil {
		return "", fmt.Errorf("reading executable: %w", err)
	}
	after, err := o.Facts()
	if err != nil {
		return "", err
	}
	if after != before || n != before.Size {
		return "", errors.New("executable changed while it was read")
	}
	digest = hex.EncodeToString(h.Sum(nil))
	if cacheable {
		c.put(before, digest)
	}
	return digest, nil
}

func (c *digestCache) put(f facts, digest string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil || len(c.m) >= maxDigests {
		c.m = map[facts]string{}
	}
	c.m[f] = digest
}

// contextReader ends a long read when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

// notDumpable looks at who owns the files of /proc/<pid>: the process's uid if
// its memory may be read by that uid, root if not. With a user's init the
// owner can read it anyway, which the grade same_uid says.
func notDumpable(cfg Config, p process) error {
	if cfg.AllowUserInit {
		return nil
	}
	f, err := p.Stat("environ")
	if err != nil {
		return deny(ReasonProc, err)
	}
	if f.UID != 0 {
		return deny(ReasonDumpable, nil)
	}
	return nil
}

// holdsTrustFile compares the file behind descriptor TrustFD with the
// configured path, by inode. Which file is behind the number is the kernel's
// word; execve gives a process a descriptor table of its own, so only init
// itself can change it, and init is measured.
func (a *Attestor) holdsTrustFile(cfg Config, p process) error {
	owner := cfg.initOwner()
	want, err := a.trusted(cfg.TrustFile, owner)
	if err != nil {
		return deny(ReasonTrustFile, err)
	}
	if !want.Mode.IsRegular() || want.UID != owner || want.Mode.Perm()&0o022 != 0 || want.Nlink != 1 || !want.LocalFS {
		return denyf(ReasonTrustFile, "mode %v, uid %d, %d links", want.Mode, want.UID, want.Nlink)
	}
	held, err := p.Stat("fd/" + strconv.Itoa(TrustFD))
	if err != nil {
		return deny(ReasonTrustFD, err)
	}
	if held.Dev != want.Dev || held.Ino != want.Ino {
		return deny(ReasonTrustFD, nil)
	}
	return nil
}

// alone scans all processes for one that shares the sandbox: one with the same
// pid namespace, or a child of init, which covers namespaces nested below,
// since a process whose parent dies becomes init's child. Threads are not
// processes here: the measured init may have them.
func (a *Attestor) alone(ctx context.Context, cfg Config, d *descriptor) error {
	pids, err := a.proc.PIDs()
	if err != nil {
		return deny(ReasonProc, err)
	}
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return deny(ReasonProc, err)
		}
		if pid == d.PID {
			continue
		}
		beside, err := a.beside(cfg, pid, d)
		if err != nil {
			return deny(ReasonNotAlone, err)
		}
		if beside {
			return denyf(ReasonNotAlone, "process %d", pid)
		}
	}
	return nil
}

// beside reports whether pid lives in d's sandbox. A process that exits during
// the look does not; one that cannot be looked at is an error.
func (a *Attestor) beside(cfg Config, pid int, d *descriptor) (bool, error) {
	p, err := a.proc.Process(pid)
	if vanished(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer p.Close()
	data, err := p.Read("status")
	if vanished(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	st, err := parseStatus(data)
	if err != nil {
		return false, err
	}
	if st.PPid == d.PID {
		return true, nil
	}
	if len(st.NSpid) == 1 { // lives in our own namespace
		return false, nil
	}
	ns, err := p.Stat("ns/pid")
	switch {
	case vanished(err):
		return false, nil
	case errors.Is(err, fs.ErrPermission) && len(st.NSpid) == 2 && st.NSpid[1] == 1:
		// Without root the attestor cannot look into another init, which is not
		// dumpable. It is the first process of its namespace, and so not in this
		// sandbox, whose first is d's; a namespace below would be a third number.
		return false, nil
	case errors.Is(err, fs.ErrPermission) && cfg.AllowUserInit && st.UIDs[0] != d.uid:
		// Without root the attestor cannot look into another user's container.
		// That user could not have entered this sandbox either.
		return false, nil
	case err != nil:
		return false, err
	}
	return ns.Ino == d.Namespace, nil
}
