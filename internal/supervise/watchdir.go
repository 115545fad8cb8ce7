package supervise

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/sealed"
)

// WatchDir is where the supervisors of a user meet, for Config.WatchDir: a
// directory that goes with the machine and that only the user can write. Without
// a runtime directory of the user's it is below the user's cache. It is empty
// where there is neither.
func WatchDir(uid int, home string) string {
	if uid == 0 {
		return "/run/sealed/watch"
	}
	runtime := filepath.Join("/run/user", strconv.Itoa(uid))
	if ours(runtime, uid) == nil {
		return filepath.Join(runtime, "sealed", "watch")
	}
	if filepath.IsAbs(home) {
		return filepath.Join(home, ".cache", "sealed", "watch")
	}
	return ""
}

// meetingPlace is the directory below base for one mount of one Vault. The answer
// key is in it, because it alone says which engine the runs believe.
func meetingPlace(base string, t sealed.TrustFile) string {
	sum := sha256.Sum256([]byte(t.VaultAddr + "\x00" + t.VaultMount + "\x00" + t.AnswerKey))
	return filepath.Join(base, hex.EncodeToString(sum[:8]))
}

// makeMeetingPlace makes it and the directory above, and refuses either where
// somebody else could write or read. What is above that may be shared: it is a
// part of the system, or in the user's home.
func makeMeetingPlace(dir string) error {
	base := filepath.Dir(dir)
	if err := os.MkdirAll(filepath.Dir(base), 0o755); err != nil {
		return fmt.Errorf("making the place to meet: %w", err)
	}
	for _, d := range []string{base, dir} {
		if err := os.Mkdir(d, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("making the place to meet: %w", err)
		}
		if err := ours(d, os.Geteuid()); err != nil {
			return fmt.Errorf("making the place to meet: %w", err)
		}
	}
	return nil
}

// ours checks that a directory is the user's alone, and no link.
func ours(dir string, uid int) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("looking at %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != uid || st.Mode&0o077 != 0 {
		return fmt.Errorf("looking at %s: it is not a directory of this user alone: %w", dir, sealed.ErrDenied)
	}
	return nil
}

// takeChair locks the chair of a meeting. Nil without an error means that
// somebody else has it. The kernel gives it back when the holder ends, however
// that happens. A lock on a file that the holder before has removed since it was
// opened is none.
func takeChair(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("taking the chair: %w", err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, f.Close()
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("taking the chair: %w", err), f.Close())
		}
		held, err := f.Stat()
		if err == nil {
			var named os.FileInfo
			if named, err = os.Lstat(path); err == nil && os.SameFile(held, named) {
				return f, nil
			}
		}
		if err := f.Close(); err != nil {
			return nil, fmt.Errorf("taking the chair: %w", err)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("taking the chair: %w", err)
		}
	}
}

// leaveChair removes the file, which only its holder may, and unlocks it. The
// directory goes with the last one.
func leaveChair(f *os.File) {
	_ = os.Remove(f.Name())
	_ = f.Close()
	_ = os.Remove(filepath.Dir(f.Name()))
}
