package demo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/redact"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// asked returns the pending approval in which the agent says why: the one made
// at enqueue has no reason yet.
func (s *show) asked(ctx context.Context) (sealed.ApprovalID, error) {
	list, err := s.approver.Approvals(ctx, sealed.ApprovalPending)
	if err != nil {
		return "", err
	}
	for _, sum := range list {
		a, err := s.approver.Approval(ctx, sum.ID)
		if err != nil {
			return "", err
		}
		if a.Decoded.Reason != "" {
			return sum.ID, nil
		}
	}
	return "", nil
}

// processes counts the processes in the pid namespace of a process 1, itself
// included; 0 when it has gone.
func processes(pid int) int {
	ns, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "ns", "pid"))
	if err != nil {
		return len(children(pid))
	}
	n := 0
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, e := range entries {
		if l, err := os.Readlink(filepath.Join("/proc", e.Name(), "ns", "pid")); err == nil && l == ns {
			n++
		}
	}
	return n
}

// children is for a user who may not look into init: init and its children.
func children(pid int) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	return append([]string{strconv.Itoa(pid)}, strings.Fields(string(b))...)
}

// review checks what the run left: output, workspace, disk, log, record.
func (s *show) review(ctx context.Context, p *performance) error {
	s.reviewRun(p)
	if err := s.reviewDisk(); err != nil {
		return err
	}
	entries, err := s.entries(ctx)
	if err != nil {
		return err
	}
	s.timeline(entries, p.run)
	s.reviewEntries(entries, p)
	return s.verify(ctx, p)
}

func (s *show) reviewRun(p *performance) {
	s.expect("the API got the real API_TOKEN, and no other credential", s.api.saw("api.demo.test", s.values["API_TOKEN"]), "")
	s.expect("after a person's yes the API got the real ADMIN_TOKEN", s.api.saw("admin.demo.test", s.values["ADMIN_TOKEN"]), "")
	s.expect("no value came out in any form, printed or answered by the API", !s.holds(strings.NewReader(p.out)), "")
	s.expect("what was printed shows as [sealed:KEY]", strings.Contains(p.out, "[sealed:ENV_TOKEN]") && strings.Contains(p.out, "[sealed:API_TOKEN]"), "")
	s.expect("the unbound host and the foreign key were refused", strings.Count(p.out, "refused (")+strings.Count(p.out, "403 ") >= 2, "")
	s.expect("the operator could not approve his own request", p.selfErr != nil, "")
	s.expect("approver and requester are different persons", p.approval.Person != "" && p.approval.Person == "operator@acme.example", "requester %s", p.approval.Person)
	s.expect("hard revocation ended the run", p.exit == sealed.ExitSealed && p.stopped > 0, "agent gone after %s, exit status %d", p.stopped.Round(time.Millisecond), p.exit)
	_, notes := os.Stat(filepath.Join(s.dir, "workspace", "notes.txt"))
	_, hook := os.Stat(filepath.Join(s.dir, "workspace", ".git", "hooks", "post-checkout"))
	_, result := os.Stat(filepath.Join(s.dir, "workspace", "result.txt"))
	s.expect("the work came back; the file with a value and the git hook did not", result == nil && errors.Is(notes, fs.ErrNotExist) && errors.Is(hook, fs.ErrNotExist), "")
}

// holds reports whether text holds a planted value in a form that the redactor
// knows.
func (s *show) holds(r interface{ Read([]byte) (int, error) }) bool {
	set := redact.NewSet()
	for k, v := range s.values {
		if err := set.Add(k, []byte(v), redact.Options{}); err != nil {
			return true
		}
	}
	found, err := redact.Scan(r, set)
	return err != nil || len(found) > 0
}

// reviewDisk looks for the values in everything that the stack and the run
// left on disk: Vault's storage and audit file, logs, run directory, workspace.
func (s *show) reviewDisk() error {
	files, hits := 0, []string{}
	err := filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		files++
		if s.holds(f) {
			hits = append(hits, path)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("looking through the disk: %w", err)
	}
	s.expect("no value is in any file: Vault's storage and audit, logs, run directory, workspace", len(hits) == 0 && files > 20, "%d files; found in %v", files, hits)
	return nil
}

func (s *show) entries(ctx context.Context) ([]vaultclient.LogEntry, error) {
	var all []vaultclient.LogEntry
	for from := uint64(0); ; {
		page, next, err := s.auditor.LogEntries(ctx, vaultclient.LogFilter{From: from, Limit: 500})
		if err != nil {
			return nil, err
		}
		all = append(all, page...)
		if next == from {
			return all, nil
		}
		from = next
	}
}

// timeline prints the run's entries, one line each.
func (s *show) timeline(entries []vaultclient.LogEntry, run sealed.RunID) {
	s.say("\nWhat happened, from the log:")
	var start time.Time
	for _, e := range entries {
		if e.Run != run && !strings.HasPrefix(e.Type, "revocation.") {
			continue
		}
		if start.IsZero() {
			start = e.Time
		}
		s.say("  %7s  %4d  %-22s %s", fmt.Sprintf("+%.2fs", e.Time.Sub(start).Seconds()), e.Seq, e.Type, digest(e))
	}
}

// digest picks the fields of a body that tell the story.
func digest(e vaultclient.LogEntry) string {
	var body map[string]any
	if err := sealed.Decode(e.Body, 1<<20, &body); err != nil {
		return ""
	}
	var out []string
	for _, f := range []string{"key", "keys", "person", "detail", "stream", "count", "delivery", "isolation", "reason", "target", "hard", "exit", "signed"} {
		if v, ok := body[f]; ok && v != "" {
			out = append(out, fmt.Sprintf("%s=%v", f, v))
		}
	}
	line := strings.Join(out, " ")
	if len(line) > 110 {
		line = line[:110] + "…"
	}
	return line
}

func (s *show) reviewEntries(entries []vaultclient.LogEntry, p *performance) {
	seen := map[string]int{}
	for _, e := range entries {
		if e.Run == p.run || e.Run == "" {
			seen[e.Type]++
		}
	}
	want := []string{"run.enqueued", "run.claimed", "issue.intent", "issue.ok", "approval.granted", "revocation.created", "redact.hit", "egress.denied", "run.finished"}
	var missing []string
	for _, t := range want {
		if seen[t] == 0 {
			missing = append(missing, t)
		}
	}
	s.expect("every step is in the log", len(missing) == 0, "missing %v", missing)
}

// verify pulls log and record and verifies them from files alone.
func (s *show) verify(ctx context.Context, p *performance) error {
	dir := filepath.Join(s.dir, "audit")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("making audit directory: %w", err)
	}
	if err := audit.WriteDir(ctx, s.auditor.LogReader(), dir); err != nil {
		return err
	}
	record, err := s.auditor.Record(ctx, p.run)
	if err != nil {
		return err
	}
	if err := audit.WriteRecord(dir, string(p.run), record); err != nil {
		return err
	}
	if err := s.copyTranscripts(dir, p.run); err != nil {
		return err
	}
	trust, err := os.ReadFile(s.status.TrustFile)
	if err != nil {
		return fmt.Errorf("reading trust file: %w", err)
	}
	t, err := sealed.ParseTrustFile(trust)
	if err != nil {
		return err
	}
	report, err := audit.VerifyDir(dir, audit.Options{VerifierKey: t.LogKey, Partial: true})
	s.expect("log and record verify offline, from files", err == nil, "%v", errOr(err, report.String()))
	changed := filepath.Join(dir, "records", string(p.run), "stdout.log")
	if b, err := os.ReadFile(changed); err == nil && len(b) > 0 {
		b[0] ^= 1
		if err := os.WriteFile(changed, b, 0o600); err != nil {
			return fmt.Errorf("changing the transcript: %w", err)
		}
		_, err = audit.VerifyDir(dir, audit.Options{VerifierKey: t.LogKey, Partial: true})
		s.expect("one flipped bit in the transcript is found", err != nil, "")
	}
	return nil
}

func (s *show) copyTranscripts(dir string, run sealed.RunID) error {
	for _, name := range []string{"stdout.log", "stderr.log"} {
		b, err := os.ReadFile(filepath.Join(s.dir, "state", "sealed", "runs", string(run), name))
		if err != nil {
			return fmt.Errorf("reading transcript: %w", err)
		}
		dst := filepath.Join(dir, "records", string(run))
		if err := os.MkdirAll(dst, 0o700); err != nil {
			return fmt.Errorf("copying transcript: %w", err)
		}
		if err := os.WriteFile(filepath.Join(dst, name), b, 0o600); err != nil {
			return fmt.Errorf("copying transcript: %w", err)
		}
	}
	return nil
}

func errOr(err error, text string) string {
	if err != nil {
		return err.Error()
	}
	return strings.ReplaceAll(strings.TrimSpace(text), "\n", "; ")
}
