// Package workspace copies an operator's directory into a sandbox's reach and
// brings back what the agent made of it.
//
// The idea: the agent never touches the operator's files. It works on a copy.
// What it changed comes back one file at a time, and only what is plainly
// data: regular files, directories, links that stay inside. What the host
// would execute or trust later, and what init found a credential in, is moved
// aside and reported.
//
// # Guarantee
//
// No function follows a symbolic link, leaves its root or opens a device:
// every path is resolved by the kernel with openat2(2), RESOLVE_BENEATH and
// RESOLVE_NO_SYMLINKS, and a file's type is asked of its open descriptor
// (B23). A file lands whole or not at all. A file that the operator changed
// meanwhile is never overwritten or deleted.
//
// # What it does not guarantee
//
// The list of places that a host executes is a list (see Protected): a
// Makefile, a package.json, source code come back, as they should, and the
// operator should read them before running them. A directory comes back file
// by file, not as one transaction. Owners, times, extended attributes and ACLs
// are not carried. Everything is read and written with the caller's rights: a
// caller that is root reads what the operator perhaps may not.
//
// # Format of the digest
//
// Digest is SHA-256 in sealed.DomainWorkspace over one record per entry. The
// walk is depth first, names in byte order within a directory, the root itself
// left out. A record is a line of text, its strings quoted as by Go's
// strconv.Quote:
//
//	d <path>
//	f <mode> <size> <sha256> <path>
//	l <target> <path>
//
// path is relative, with slashes; mode is the three execute bits (mode & 0111)
// in octal; size is decimal; sha256 is of the content, in hex. Sockets and
// FIFOs are left out, as CopyIn leaves them out; devices are refused.
package workspace

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/sealed"
)

// Limits of a workspace.
const (
	MaxFiles = 200_000 // entries of any type
	MaxBytes = 4 << 30 // sum of apparent sizes
	MaxDepth = 128     // nested directories
)

var (
	// ErrTooLarge means that a limit was passed.
	ErrTooLarge = errors.New("workspace too large (at most 200,000 entries, 4 GiB, 128 levels)")
	// ErrDevice means that the workspace holds a device file.
	ErrDevice = errors.New("workspace holds a device")
)

// An entry is one file, directory or link, as it was once.
type entry struct {
	path   string // relative, slash-separated
	kind   byte   // 'd', 'f', 'l'; 0 for anything else
	mode   fs.FileMode
	size   int64
	sum    string // hex SHA-256, of files that were read
	target string // of links
	inode  uint64

	uid, gid int
}

// record is the entry's line in the digest.
func (e entry) record() string {
	switch e.kind {
	case 'd':
		return fmt.Sprintf("d %q\n", e.path)
	case 'l':
		return fmt.Sprintf("l %q %q\n", e.target, e.path)
	}
	return fmt.Sprintf("f %03o %d %s %q\n", e.mode&0o111, e.size, e.sum, e.path)
}

// A Baseline is what a workspace was when it was copied. It is safe for
// concurrent reading.
type Baseline struct {
	Digest  sealed.Digest
	entries map[string]entry
}

type digester struct{ h hash.Hash }

func newDigester() digester {
	d := digester{sha256.New()}
	d.h.Write([]byte(sealed.DomainWorkspace))
	d.h.Write([]byte{0})
	return d
}

func (d digester) add(e entry)        { _, _ = io.WriteString(d.h, e.record()) }
func (d digester) sum() sealed.Digest { return sealed.Digest(hex.EncodeToString(d.h.Sum(nil))) }

// EmptyDigest is the digest of an empty tree.
func EmptyDigest() sealed.Digest { return newDigester().sum() }

// Digest returns the content digest of the tree below root. Errors wrap
// ErrTooLarge or ErrDevice where that is the cause. The result is meaningful
// only if nobody writes to the tree meanwhile.
func Digest(root string) (sealed.Digest, error) {
	t, err := openTree(root)
	if err != nil {
		return "", err
	}
	defer t.close()
	d := newDigester()
	err = t.walk(func(dir int, name string, e entry) error {
		switch e.kind {
		case 0:
			return refuseDevice(e)
		case 'f':
			f, err := openFile(dir, name, e)
			if err != nil {
				return err
			}
			defer f.Close()
			if e.sum, e.size, err = hashOf(f); err != nil {
				return fmt.Errorf("reading %q: %w", e.path, err)
			}
		}
		d.add(e)
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("digesting workspace: %w", err)
	}
	return d.sum(), nil
}

func refuseDevice(e entry) error {
	if e.mode&(fs.ModeDevice|fs.ModeCharDevice) != 0 {
		return fmt.Errorf("%q: %w", e.path, ErrDevice)
	}
	return nil
}

func hashOf(r io.Reader) (string, int64, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return hex.EncodeToString(h.Sum(nil)), n, err
}

// A Look reads content and reports whether it must not leave the sandbox.
type Look func(r io.Reader) (bool, error)

// Scan shows every path, link target and file below root to look, and returns
// the paths of those it objects to, sorted; a directory stands for all below
// it. It belongs to init, which alone knows what to look for, and which calls
// it when the agent is gone. A path that is itself objectionable is renamed, so
// that the result is fit to leave the sandbox.
//
// After an error nothing may leave: pass "." to CopyBack.
func Scan(root string, look Look) ([]string, error) {
	t, err := openTree(root)
	if err != nil {
		return nil, err
	}
	defer t.close()
	var found, named []string
	err = t.walk(func(dir int, name string, e entry) error {
		if n := len(named); n > 0 && strings.HasPrefix(e.path, named[n-1]+"/") {
			return nil // goes with its directory
		}
		bad, err := look(strings.NewReader(e.path))
		if err == nil && bad {
			named = append(named, e.path)
			return nil
		}
		if err == nil && e.kind == 'l' {
			bad, err = look(strings.NewReader(e.target))
		}
		if err == nil && e.kind == 'f' {
			bad, err = lookInto(dir, name, e, look)
		}
		if bad {
			found = append(found, e.path)
		}
		return err
	})
	for _, p := range named {
		if err == nil {
			p, err = t.rename(p)
			found = append(found, p)
		}
	}
	if err != nil { // which may quote a path
		return nil, errors.New("scanning workspace: not everything could be read")
	}
	slices.Sort(found)
	return found, nil
}

// renamed starts the names that Scan gives. CopyBack knows by it that an entry
// of the same directory is not missing but renamed.
const renamed = "sealed-renamed-"

// rename gives an entry a name that says nothing.
func (t *tree) rename(p string) (string, error) {
	dir, name, err := t.parent(p)
	if err != nil {
		return "", err
	}
	defer unix.Close(dir)
	fresh := renamed + rand.Text()
	return path.Join(path.Dir(p), fresh), unix.Renameat(dir, name, dir, fresh)
}

// lookInto objects to a file that can't be read: nobody knows what is in it.
func lookInto(dir int, name string, e entry, look Look) (bool, error) {
	f, err := openFile(dir, name, e)
	if errors.Is(err, fs.ErrPermission) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	return look(f)
}

// openFile opens a regular file that was just seen, and makes sure that it is
// that one. O_NONBLOCK keeps a FIFO in its place from stopping us.
func openFile(dir int, name string, e entry) (*os.File, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: e.path, Err: err}
	}
	f := os.NewFile(uintptr(fd), e.path)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Ino != e.inode {
		return nil, errors.Join(fmt.Errorf("opening %q: it was replaced", e.path), err, f.Close())
	}
	return f, nil
}
