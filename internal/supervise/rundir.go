package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/workspace"
)

// States of a run, for its Status.
const (
	StateRunning = "running"
	StateEnded   = "ended"
	StateFailed  = "failed" // did not start
)

// A Status is what status.json says.
type Status struct {
	Run       sealed.RunID     `json:"run"`
	State     string           `json:"state"`
	PID       int              `json:"pid"` // of the owner
	InitPID   int              `json:"init_pid,omitempty"`
	UID       int              `json:"uid"` // of the sandbox
	Isolation string           `json:"isolation"`
	Started   time.Time        `json:"started"`
	Ended     *time.Time       `json:"ended,omitempty"`
	Exit      int              `json:"exit"`
	Finished  bool             `json:"finished"`
	Reason    string           `json:"reason,omitempty"`
	Message   string           `json:"message,omitempty"`
	Workspace workspace.Report `json:"workspace,omitzero"`
}

// RunDir is where a run's files are kept.
func RunDir(stateDir, run string) string { return filepath.Join(stateDir, "runs", run) }

// ReadStatus reads the status of a run from its directory.
func ReadStatus(dir string) (Status, error) {
	var s Status
	b, err := os.ReadFile(filepath.Join(dir, "status.json"))
	if err != nil {
		return s, fmt.Errorf("reading run status: %w", err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("reading run status: %w", err)
	}
	return s, nil
}

// prepare allocates the uid, makes the run directory and copies the workspace.
func (o *owner) prepare() error {
	if err := installed("sealed-init", o.cfg.Init); err != nil {
		return err
	}
	if err := installed("sealed", o.cfg.Command); err != nil {
		return err
	}
	own := o.cfg.Sandbox.Isolation == sealed.IsolationOwnUID
	mode := os.FileMode(0o700)
	if own {
		mode = 0o711
	}
	runs, uids := filepath.Join(o.cfg.StateDir, "runs"), filepath.Join(o.cfg.StateDir, "uids")
	if err := errors.Join(os.MkdirAll(runs, mode), os.MkdirAll(uids, 0o700)); err != nil {
		return fmt.Errorf("making state directory: %w", err)
	}
	o.uid, o.gid = os.Getuid(), os.Getgid()
	if own {
		lease, err := o.cfg.UIDs.acquire(uids)
		if err != nil {
			return err
		}
		o.lease, o.uid, o.gid = lease, lease.uid, lease.uid
	}
	dir := RunDir(o.cfg.StateDir, string(o.cfg.Run))
	if err := os.Mkdir(dir, mode); err != nil { // a run that was has one
		return fmt.Errorf("making run directory: %w", err)
	}
	o.dir = dir
	if err := os.Chmod(dir, mode); err != nil { // whatever the umask
		return fmt.Errorf("making run directory: %w", err)
	}
	if own {
		if err := reachable(o.copyPath(), o.cfg.Init, o.cfg.Command); err != nil {
			return err
		}
	}
	return o.copyIn()
}

// installed says plainly that a program of ours is not where it should be,
// before anything is made for the run. An empty path is a program that the run
// does without.
func installed(name, path string) error {
	if path == "" {
		return nil
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s is missing: %s; build it with CGO_ENABLED=0 go build sealed.dev/sealed/cmd/%s: %w", name, path, name, sealed.ErrNotFound)
	case err != nil:
		return fmt.Errorf("looking for %s: %w", name, err)
	case !st.Mode().IsRegular():
		return fmt.Errorf("looking for %s: %s is not a regular file: %w", name, path, sealed.ErrInvalid)
	}
	return nil
}

// reachable checks what the run's uid, in nobody's group, needs to get at the
// paths. Without it bubblewrap fails with a message about a missing path.
func reachable(paths ...string) error {
	for _, p := range paths {
		for p != "" && p != "/" {
			p = filepath.Dir(p)
			if st, err := os.Stat(p); err != nil || st.Mode().Perm()&0o001 == 0 {
				return errors.Join(fmt.Errorf("the sandbox's uid can't reach below %s (chmod o+x, or use another directory)", p), err)
			}
		}
	}
	return nil
}

func (o *owner) copyPath() string { return filepath.Join(o.dir, "workspace") }

func (o *owner) copyIn() error {
	if err := os.Mkdir(o.copyPath(), 0o700); err != nil {
		return fmt.Errorf("making workspace: %w", err)
	}
	if o.cfg.Workspace != "" {
		baseline, err := workspace.CopyIn(o.cfg.Workspace, o.copyPath(), o.uid)
		if err != nil {
			return err
		}
		o.baseline = baseline
	}
	if o.lease != nil {
		return os.Lchown(o.copyPath(), o.uid, o.gid)
	}
	return nil
}

func (o *owner) removeCopy() error {
	if err := os.RemoveAll(o.copyPath()); err != nil {
		return fmt.Errorf("removing workspace copy: %w", err)
	}
	return nil
}

// status replaces status.json.
func (o *owner) status(state string, res Result) error {
	s := Status{
		Run: o.cfg.Run, State: state, PID: os.Getpid(), UID: o.uid, Isolation: o.cfg.Sandbox.Isolation, Started: o.started.UTC(),
		Exit: res.Exit, Finished: res.Finished, Reason: res.Reason, Message: res.Message, Workspace: res.Workspace,
	}
	if o.box != nil {
		s.InitPID = o.box.InitPID()
	}
	if state != StateRunning {
		now := time.Now().UTC()
		s.Ended = &now
	}
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encoding status: %w", err)
	}
	return o.write("status.json", append(b, '\n'))
}

// write replaces a file of the run directory as a whole.
func (o *owner) write(name string, data []byte) error {
	path := filepath.Join(o.dir, name)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}

// finish settles the files of a run whose processes are gone.
func (o *owner) finish(reason string, err error) (Result, error) {
	res := Result{Exit: sealed.ExitSealed, Reason: reason, Dir: o.dir}
	msg, failed := o.words()
	if msg == nil {
		if failed != nil {
			res.Message = sealed.CleanReason(failed.Message)
			if failed.Exit > 0 && failed.Exit <= sealed.ExitNotFound { // never a success without a record
				res.Exit = failed.Exit
			}
			err = errors.Join(err, o.maskTranscripts(failed.Masks))
		}
		err = errors.Join(err, o.discard(&res), o.status(StateEnded, res))
		if o.cfg.OnEnd != nil {
			o.cfg.OnEnd(reason)
		}
		return res, err
	}
	res.Exit, res.Finished, res.Reason, res.Digests = msg.Exit, true, ReasonFinished, msg.Digests
	res.Message = sealed.CleanReason(msg.Message)
	if msg.Record != "" {
		res.Record = filepath.Join(res.Dir, "record.dsse.json")
		err = errors.Join(err, o.write("record.dsse.json", []byte(msg.Record)))
	}
	err = errors.Join(err, o.copyBack(&res, msg.Quarantine), o.maskTranscripts(msg.Masks))
	return res, errors.Join(err, o.status(StateEnded, res))
}

// discard handles a copy that nobody looked through. Where a credential may
// lie in it, it is destroyed.
func (o *owner) discard(res *Result) error {
	if o.cfg.Boot.Mode == sealed.ModeJIT || o.baseline == nil {
		return o.removeCopy()
	}
	res.Held = o.copyPath()
	return nil
}

// copyBack brings the workspace home. If that fails the copy stays, without
// what init flagged.
func (o *owner) copyBack(res *Result, flagged []string) error {
	if o.baseline == nil {
		return o.removeCopy()
	}
	var err error
	res.Workspace, err = workspace.CopyBack(o.copyPath(), o.cfg.Workspace, o.baseline, flagged, filepath.Join(o.dir, "quarantine"))
	if err == nil {
		return o.removeCopy()
	}
	if rm := removeFlagged(o.copyPath(), flagged); rm != nil {
		return errors.Join(err, rm, o.removeCopy())
	}
	res.Held = o.copyPath()
	return err
}

func removeFlagged(dir string, flagged []string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, p := range flagged {
		if p == "." || strings.HasPrefix(p, "/") {
			return errors.New("everything is flagged")
		}
		if err := root.RemoveAll(p); err != nil {
			return err
		}
	}
	return nil
}
