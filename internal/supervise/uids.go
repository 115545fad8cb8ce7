package supervise

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/sealed"
)

// A UIDRange holds the host's uids that runs may have, both ends included. It
// must belong to nothing else: no account, no line of /etc/subuid. The usual
// range is 700000 to 799999.
type UIDRange struct{ Min, Max int }

func (r UIDRange) validate() error {
	if r.Min < 1000 || r.Max < r.Min || r.Max >= 1<<31 {
		return &sealed.FieldError{Field: "uids", Reason: "a launcher that is root needs a range of uids above 999"}
	}
	return nil
}

// errNoUID means that every uid of the range is in use.
var errNoUID = errors.New("every uid of the range is in use")

// A lease on a uid is a lock on a file; the kernel gives it back when the
// holder ends, however that happens.
type uidLease struct {
	uid  int
	lock *os.File
}

// acquire locks a free uid of the range. dir holds the lock files.
func (r UIDRange) acquire(dir string) (*uidLease, error) {
	if err := r.validate(); err != nil {
		return nil, err
	}
	n := r.Max - r.Min + 1
	start := rand.IntN(n)
	for i := range n {
		uid := r.Min + (start+i)%n
		l, err := lockUID(dir, uid)
		if err != nil {
			return nil, fmt.Errorf("allocating uid: %w", err)
		}
		if l == nil {
			continue
		}
		used, err := uidInUse("/proc", uid)
		if err == nil && !used {
			return l, nil
		}
		_ = l.lock.Close()
		if err != nil {
			return nil, fmt.Errorf("allocating uid: %w", err)
		}
	}
	return nil, fmt.Errorf("allocating uid: %w", errNoUID)
}

// lockUID returns nil if another run has the uid. Lock files are never
// removed: a removed file would let two runs lock one name.
func lockUID(dir string, uid int) (*uidLease, error) {
	path := filepath.Join(dir, strconv.Itoa(uid))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, f.Close()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &uidLease{uid: uid, lock: f}, nil
}

// uidInUse looks for a process with the uid: a sandbox whose owner was killed
// a moment ago, or something that should not be there. A zombie counts: it may
// be the first thread of a process that still runs.
func uidInUse(proc string, uid int) (bool, error) {
	dirs, err := filepath.Glob(proc + "/[0-9]*/status")
	if err != nil {
		return false, err
	}
	for _, p := range dirs {
		b, err := os.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return false, err
		}
		for line := range strings.Lines(string(b)) {
			ids, ok := strings.CutPrefix(line, "Uid:")
			if !ok {
				continue
			}
			for _, id := range strings.Fields(ids) {
				if id == strconv.Itoa(uid) {
					return true, nil
				}
			}
		}
	}
	return false, nil
}
