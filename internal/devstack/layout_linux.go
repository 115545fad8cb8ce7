package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

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
// file is closed or the process dies. It waits for another holder until ctx
// ends, and calls waiting once if it has to.
func lockFile(ctx context.Context, path string, waiting func()) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking: %w", err)
	}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for told := false; ; told = true {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			break
		}
		if !told && waiting != nil {
			waiting()
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("waiting for %s, which another process holds: %w", path, ctx.Err()), f.Close())
		case <-tick.C:
		}
	}
	return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
}
