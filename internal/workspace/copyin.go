package workspace

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// CopyIn copies the tree below src into dst, an existing empty directory, and
// gives it to uid (and the group of the same number) if uid is not the
// caller's. Links are copied as they are, whatever they point to: in the
// sandbox they lead nowhere new. Devices, sockets and FIFOs are left out;
// setuid, setgid and sticky bits too. Hard links become files of their own.
// The baseline describes exactly what was copied.
func CopyIn(src, dst string, uid int) (*Baseline, error) {
	from, err := openTree(src)
	if err != nil {
		return nil, fmt.Errorf("copying workspace: %w", err)
	}
	defer from.close()
	to, err := openTree(dst)
	if err != nil {
		return nil, fmt.Errorf("copying workspace: %w", err)
	}
	defer to.close()
	c := copier{to: to, owner: -1, baseline: &Baseline{entries: make(map[string]entry)}, digest: newDigester()}
	if uid != os.Getuid() {
		c.owner = uid
	}
	if err := from.walk(c.copy); err != nil {
		return nil, fmt.Errorf("copying workspace: %w", err)
	}
	c.baseline.Digest = c.digest.sum()
	return c.baseline, nil
}

type copier struct {
	to       *tree
	owner    int // -1: leave it
	baseline *Baseline
	digest   digester
}

func (c *copier) copy(dir int, name string, e entry) error {
	if e.kind == 0 {
		return nil
	}
	parent, _, err := c.to.parent(e.path)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	switch e.kind {
	case 'd':
		err = unix.Mkdirat(parent, name, 0o700|uint32(e.mode.Perm()))
	case 'l':
		err = unix.Symlinkat(e.target, parent, name)
	case 'f':
		err = copyFile(dir, name, parent, name, 0o600|e.mode.Perm(), &e, nil)
	}
	if err == nil && c.owner >= 0 {
		err = unix.Fchownat(parent, name, c.owner, c.owner, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("copying %q: %w", e.path, err)
	}
	c.baseline.entries[e.path] = e
	c.digest.add(e)
	return nil
}

// copyFile makes a new file with the content of another, and fills in the size
// and digest of what was read. It shares blocks where the file system can.
// finish, if not nil, is called with the new file's descriptor: names may have
// been changed by others, descriptors can't.
func copyFile(fromDir int, from string, toDir int, to string, mode fs.FileMode, e *entry, finish func(fd int) error) (err error) {
	src, err := openFile(fromDir, from, *e)
	if err != nil {
		return err
	}
	defer src.Close()
	fd, err := unix.Openat(toDir, to, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, uint32(mode.Perm()))
	if err != nil {
		return err
	}
	dst := os.NewFile(uintptr(fd), e.path)
	defer func() { err = errors.Join(err, dst.Close()) }()
	if unix.IoctlFileClone(fd, int(src.Fd())) == nil {
		e.sum, e.size, err = hashOf(io.LimitReader(dst, MaxBytes))
	} else {
		e.sum, e.size, err = hashOf(io.TeeReader(io.LimitReader(src, MaxBytes), dst))
	}
	if err == nil && finish != nil {
		err = finish(fd)
	}
	return err
}
