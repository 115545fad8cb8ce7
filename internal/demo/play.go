package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/supervise"
)

// A performance is what one run of the agent left.
type performance struct {
	run      sealed.RunID
	out      string // what the operator saw
	exit     int
	stopped  time.Duration // from "revoke" sent to the agent gone
	approval sealed.ApprovalObject
	selfErr  error // the operator's attempt to approve
}

// A screen collects the run's output and shows it as it comes.
type screen struct {
	s  *show
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *screen) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.b.Write(p)
	return w.s.cfg.Out.Write(p)
}

func (w *screen) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// play starts sealedctl run as the operator, and reacts: it approves as the
// approver, and revokes as the operator, while the agent runs.
func (s *show) play(ctx context.Context) (*performance, error) {
	w := &screen{s: s}
	args := append(append([]string{}, s.cfg.Self[1:]...), "run", "--agent", "demo", "--profile", string(profileName), "--workflow", "demo", "--", "/workspace/agent")
	cmd := exec.CommandContext(ctx, s.cfg.Self[0], args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 15 * time.Second
	cmd.Dir = filepath.Join(s.dir, "workspace")
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "XDG_STATE_HOME=" + filepath.Join(s.dir, "state"),
		"VAULT_ADDR=" + s.status.VaultAddr, "VAULT_CACERT=" + s.status.VaultCA, "VAULT_TOKEN=" + s.token,
		"SEALED_TRUST_FILE=" + s.status.TrustFile, "SEALED_LIBEXEC=" + filepath.Dir(s.status.InitPath), "SEALED_MOUNT=" + s.status.Mount,
	}
	cmd.Stdout, cmd.Stderr = w, w
	s.say("\nThe operator runs:  sealedctl run --agent demo --profile %s --workflow demo -- /workspace/agent\n", profileName)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting sealedctl run: %w", err)
	}
	p := &performance{}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	err := s.react(ctx, w, p, done)
	if err != nil {
		_ = cmd.Process.Signal(os.Interrupt)
	}
	werr := <-done
	var exit *exec.ExitError
	if errors.As(werr, &exit) {
		p.exit = exit.ExitCode()
	} else if werr != nil {
		err = errors.Join(err, werr)
	}
	p.out = w.text()
	return p, err
}

var runLine = regexp.MustCompile(`sealed: run ([0-9A-Z]{26})`)

// react waits for the moments at which people act. done keeps the end of the
// run for the caller.
func (s *show) react(ctx context.Context, w *screen, p *performance, done chan error) error {
	pending, err := s.awaitApproval(ctx, done)
	if err != nil {
		return err
	}
	if m := runLine.FindStringSubmatch(w.text()); m != nil {
		p.run = sealed.RunID(m[1])
	}
	if err := s.approve(ctx, p, pending); err != nil {
		return err
	}
	select {
	case <-s.api.held:
	case err := <-done:
		done <- err
		return errors.New("the run ended before it could be revoked")
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(30 * time.Second):
		return errors.New("the agent did not come as far as the request that is to be cut")
	}
	return s.revoke(ctx, p, done)
}

// awaitApproval polls the list as an approver's console would.
func (s *show) awaitApproval(ctx context.Context, done chan error) (sealed.ApprovalID, error) {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		if id, err := s.asked(ctx); err != nil || id != "" {
			return id, err
		}
		select {
		case err := <-done:
			done <- err
			return "", errors.New("the run ended before it asked for a person")
		case <-time.After(50 * time.Millisecond):
		}
	}
	return "", errors.New("nobody asked for a person")
}

// approve shows what the approver is shown, lets the operator try first, and
// then says yes to exactly that digest.
func (s *show) approve(ctx context.Context, p *performance, id sealed.ApprovalID) error {
	a, err := s.approver.Approval(ctx, id)
	if err != nil {
		return err
	}
	o := a.Decoded
	p.approval = o
	s.say("\n  The approver is asked, and sees the exact request (digest %.16s…):", a.Digest)
	s.say("    key %s of %s, risk %s, delivery %s, for %s of agent %s", o.Key, o.Profile, o.Risk, o.Delivery, time.Duration(o.TTL)*time.Second, o.Agent)
	for _, b := range o.Bindings {
		s.say("    only into %v https://%s%v, header %s", b.Methods, b.Host, b.Paths, b.Header)
	}
	s.say("    the agent says: %q", o.Reason)
	s.say("    requester %s; needs %d of %v", o.Requester, o.Quorum, o.Groups)
	if _, p.selfErr = s.operator.Approve(ctx, id, a.Digest); p.selfErr != nil {
		s.say("    the operator tries to approve it himself: refused")
	}
	if _, err := s.approver.Approve(ctx, id, a.Digest); err != nil {
		return err
	}
	s.say("    the approver, another person, says yes\n")
	return nil
}

// revoke plays the operator's alarm, and measures.
func (s *show) revoke(ctx context.Context, p *performance, done chan error) error {
	pid, err := s.initPID(p.run)
	if err != nil {
		return err
	}
	s.say("\n  The operator revokes API_TOKEN, hard, while the agent is in the middle of a request:")
	sent := time.Now()
	if _, err := s.operator.Revoke(ctx, sealed.Revocation{Kind: sealed.RevokeKey, Target: "API_TOKEN", Hard: true, Reason: "the agent was taken over"}); err != nil {
		return err
	}
	for processes(pid) > 1 { // process 1 lives on to sign the record
		if time.Since(sent) > 10*time.Second {
			return errors.New("the agent was not stopped")
		}
		time.Sleep(time.Millisecond)
	}
	p.stopped = time.Since(sent)
	s.say("    agent gone after %s\n", p.stopped.Round(time.Millisecond))
	select {
	case err := <-done:
		done <- err
		return nil
	case <-time.After(30 * time.Second):
		return errors.New("the run did not end")
	}
}

func (s *show) initPID(run sealed.RunID) (int, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, "state", "sealed", "runs", string(run), "status.json"))
	if err != nil {
		return 0, fmt.Errorf("reading run status: %w", err)
	}
	var st supervise.Status
	if err := sealed.Decode(b, 1<<20, &st); err != nil {
		return 0, err
	}
	return st.InitPID, nil
}
