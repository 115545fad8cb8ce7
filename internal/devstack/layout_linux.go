package devstack

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ownDirectory refuses a directory that someone else made, or a link to one:
// whoever owns it could exchange binaries and sockets.
func ownDirectory(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("examining %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("examining %s: it is not a directory of uid %d", path, os.Geteuid())
	}
	return nil
}

// lockFile takes an exclusive lock that the kernel drops when the returned
// file is closed or the process dies. It waits.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return f, nil
}
