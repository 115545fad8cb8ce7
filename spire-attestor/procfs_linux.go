package spireattestor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxProcFile bounds a read; status is about 1.5 KiB.
const maxProcFile = 64 << 10

// kernel is the real procfs, mounted at root.
type kernel struct{ root string }

func (k kernel) Process(pid int) (process, error) {
	dir := filepath.Join(k.root, strconv.Itoa(pid))
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("opening process %d: %w", pid, err)
	}
	return &kernelProcess{dir: os.NewFile(uintptr(fd), dir)}, nil
}

func (k kernel) PIDs() ([]int, error) {
	d, err := os.Open(k.root)
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	names, err := d.Readdirnames(-1)
	if err := errors.Join(err, d.Close()); err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	var pids []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func (k kernel) BootID() (string, error) {
	b, err := os.ReadFile(filepath.Join(k.root, "sys/kernel/random/boot_id"))
	if err != nil {
		return "", fmt.Errorf("reading boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func (k kernel) OwnPIDNamespace() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(k.root, "self/ns/pid"), &st); err != nil {
		return 0, fmt.Errorf("reading own pid namespace: %w", err)
	}
	return st.Ino, nil
}

// kernelProcess holds the directory /proc/<pid> open. The kernel ties that
// directory to the process's struct pid, not to the number: once the process
// is reaped, every access through it is ESRCH or ENOENT.
type kernelProcess struct{ dir *os.File }

func (p *kernelProcess) Read(name string) ([]byte, error) {
	fd, err := unix.Openat(int(p.dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	defer unix.Close(fd)
	// One read call, so that the text is one snapshot.
	buf := make([]byte, maxProcFile)
	n, err := unix.Read(fd, buf)
	if err != nil || n == len(buf) {
		return nil, fmt.Errorf("reading %s: %w", name, errors.Join(errProc, err))
	}
	return buf[:n], nil
}

func (p *kernelProcess) Stat(name string) (facts, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(int(p.dir.Fd()), name, &st, 0); err != nil {
		return facts{}, fmt.Errorf("examining %s: %w", name, err)
	}
	return factsOf(&st), nil
}

// Open opens what the magic link points to. O_NONBLOCK: a FIFO must not hold
// the attestor; callers refuse everything but regular files by its facts.
func (p *kernelProcess) Open(name string) (object, error) {
	fd, err := unix.Openat(int(p.dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", name, err)
	}
	return kernelObject{os.NewFile(uintptr(fd), name)}, nil
}

func (p *kernelProcess) Close() error { return p.dir.Close() }

type kernelObject struct{ *os.File }

func (o kernelObject) Facts() (facts, error) { return fdFacts(int(o.Fd())) }

func fdFacts(fd int) (facts, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return facts{}, fmt.Errorf("examining file: %w", err)
	}
	var fsys unix.Statfs_t
	if err := unix.Fstatfs(fd, &fsys); err != nil {
		return facts{}, fmt.Errorf("examining file system: %w", err)
	}
	f := factsOf(&st)
	f.LocalFS = slices.Contains(localFS, int64(fsys.Type))
	return f, nil
}

// localFS is an allow-list by statfs(2) magic. bcachefs, ZFS and F2FS have no
// name in x/sys on every platform and are given by number.
var localFS = []int64{
	unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.RAMFS_MAGIC,
	unix.OVERLAYFS_SUPER_MAGIC, unix.SQUASHFS_MAGIC, unix.EROFS_SUPER_MAGIC_V1, unix.F2FS_SUPER_MAGIC,
	0x2fc12fc1, 0xca451a4e,
}

func factsOf(st *unix.Stat_t) facts {
	f := facts{
		Dev: st.Dev, Ino: st.Ino, UID: st.Uid, Nlink: uint64(st.Nlink), Size: st.Size,
		Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano(),
		Mode: fs.FileMode(st.Mode & 0o777),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		f.Mode |= fs.ModeDir
	default:
		f.Mode |= fs.ModeIrregular
	}
	for bit, mode := range map[uint32]fs.FileMode{
		unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky,
	} {
		if st.Mode&bit != 0 {
			f.Mode |= mode
		}
	}
	return f
}

// statTrusted returns the facts of the file at path. No component may be a
// symbolic link, and every directory above must belong to root or owner and be
// writable by its owner alone; a sticky directory of root's counts too, for
// there nobody replaces another's entry.
func statTrusted(path string, owner uint32) (facts, error) {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		f, err := statNoLinks(dir, unix.O_DIRECTORY)
		if err != nil {
			return facts{}, err
		}
		sticky := f.UID == 0 && f.Mode&fs.ModeSticky != 0
		if f.UID != 0 && f.UID != owner || f.Mode.Perm()&0o022 != 0 && !sticky {
			return facts{}, fmt.Errorf("examining %s: others may change this directory", dir)
		}
		if dir == "/" {
			break
		}
	}
	return statNoLinks(path, 0)
}

func statNoLinks(path string, flags uint64) (facts, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | flags,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return facts{}, fmt.Errorf("opening %s: %w", path, err)
	}
	defer unix.Close(fd)
	return fdFacts(fd)
}

// A pin is a pidfd: it names one life of a process for as long as it is open.
type pin interface {
	// Gone is closed when the process has exited, or when the pin is closed.
	Gone() <-chan struct{}
	// Alive asks the kernel now.
	Alive() bool
	Close() error
}

type pidfd struct {
	file *os.File
	gone chan struct{}
}

// openPIDFD pins the process that has the number now.
func openPIDFD(pid int) (pin, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("pinning process %d: %w", pid, err)
	}
	return watchPIDFD(fd)
}

// watchPIDFD takes over fd.
func watchPIDFD(fd int) (pin, error) {
	if err := unix.SetNonblock(fd, true); err != nil { // also makes the runtime poll it
		return nil, errors.Join(fmt.Errorf("pinning process: %w", err), unix.Close(fd))
	}
	p := &pidfd{file: os.NewFile(uintptr(fd), "pidfd"), gone: make(chan struct{})}
	raw, err := p.file.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pinning process: %w", err), p.file.Close())
	}
	go func() {
		defer close(p.gone)
		// A pidfd is readable from the exit of its process on. Close ends the wait.
		_ = raw.Read(exited)
	}()
	return p, nil
}

func exited(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			return err != nil || n > 0
		}
	}
}

func (p *pidfd) Gone() <-chan struct{} { return p.gone }

func (p *pidfd) Alive() bool {
	select {
	case <-p.gone:
		return false
	default:
	}
	raw, err := p.file.SyscallConn()
	if err != nil {
		return false
	}
	alive := false
	err = raw.Control(func(fd uintptr) { alive = !exited(fd) })
	return err == nil && alive
}

func (p *pidfd) Close() error { return p.file.Close() }

// settleEvery is how often a starting sandbox is looked at again.
const settleEvery = 2 * time.Millisecond

// vanished: the process is gone, which procfs says in two ways.
func vanished(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT)
}
