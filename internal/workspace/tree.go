package workspace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A tree is an open root directory.
type tree struct{ root int }

// openTree opens a directory. The root itself may be reached through links: it
// is the caller's, not the agent's.
func openTree(root string) (*tree, error) {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: root, Err: err}
	}
	return &tree{fd}, nil
}

func (t *tree) close() { _ = unix.Close(t.root) }

// dir opens a directory below the root, "." or relative, without following
// any link on the way.
func (t *tree) dir(path string) (int, error) {
	fd, err := unix.Openat2(t.root, path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// parent opens the directory that holds path, and returns the last name.
func (t *tree) parent(path string) (int, string, error) {
	dir, name := ".", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	fd, err := t.dir(dir)
	return fd, name, err
}

// A visit sees one entry, in the open directory dir, before what is below it.
type visit func(dir int, name string, e entry) error

// walk visits everything below the root, within the limits.
func (t *tree) walk(v visit) error {
	fd, err := t.dir(".")
	if err != nil {
		return err
	}
	w := walker{visit: v}
	return w.directory(fd, "", 0)
}

type walker struct {
	visit visit
	files int
	bytes int64
}

// directory takes over fd.
func (w *walker) directory(fd int, path string, depth int) error {
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if depth > MaxDepth {
		return ErrTooLarge
	}
	names, err := f.Readdirnames(MaxFiles - w.files + 1)
	if err != nil && len(names) > 0 || len(names) > MaxFiles-w.files {
		return errors.Join(ErrTooLarge, err)
	}
	w.files += len(names)
	slices.Sort(names)
	for _, name := range names {
		if err := w.one(fd, path, name, depth); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) one(dir int, path, name string, depth int) error {
	if path != "" {
		path += "/"
	}
	e, err := look(dir, name, path+name)
	if err != nil {
		return err
	}
	if e.kind == 'f' {
		if w.bytes += e.size; w.bytes > MaxBytes || e.size < 0 {
			return ErrTooLarge
		}
	}
	if err := w.visit(dir, name, e); err != nil || e.kind != 'd' {
		return err
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: e.path, Err: err}
	}
	return w.directory(fd, e.path, depth+1)
}

// look describes a name in an open directory without following it.
func look(dir int, name, path string) (entry, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return entry{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	e := entry{path: path, size: st.Size, mode: fs.FileMode(st.Mode & 0o777), inode: st.Ino, uid: int(st.Uid), gid: int(st.Gid)}
	if st.Mode&unix.S_ISUID != 0 {
		e.mode |= fs.ModeSetuid
	}
	if st.Mode&unix.S_ISGID != 0 {
		e.mode |= fs.ModeSetgid
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.kind = 'd'
	case unix.S_IFREG:
		e.kind = 'f'
	case unix.S_IFLNK:
		e.kind = 'l'
		buf := make([]byte, 4097)
		n, err := unix.Readlinkat(dir, name, buf)
		if err != nil || n > 4096 {
			return entry{}, errors.Join(fmt.Errorf("reading link %q", path), err)
		}
		e.target = string(buf[:n])
	case unix.S_IFBLK, unix.S_IFCHR:
		e.mode |= fs.ModeDevice
	case unix.S_IFIFO:
		e.mode |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		e.mode |= fs.ModeSocket
	}
	return e, nil
}
