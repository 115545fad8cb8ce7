package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

func newAuditCmd(a *app) *cobra.Command {
	return group("audit", "Read the log, take it away, and verify it offline",
		`The log says what the engine did: names only. query asks the engine and proves
nothing; pull takes the log and the records away as files; verify checks those
files alone, against a key that comes from elsewhere.

  sealedctl audit query --run 01JD0Z5X7RS3X7Q4K5M6N7P8Q9
  sealedctl audit pull evidence
  sealedctl audit verify evidence`,
		newAuditQueryCmd(a), newAuditPullCmd(a), newAuditVerifyCmd(a), newAuditRollbackCmd(a))
}

// pollEvery is how often a followed query asks for more.
const pollEvery = time.Second

func newAuditQueryCmd(a *app) *cobra.Command {
	var run, typ string
	var since time.Duration
	var follow bool
	cmd := &cobra.Command{
		Use: "query [--run ID] [--type T] [--since 1h] [-f]", Short: "Show entries of the log, as the engine tells them", Args: cobra.NoArgs,
		Long: `Query shows entries, oldest first: one JSON object on a line with -o json. A type
may end with .* to match a family. -f goes on until it is interrupted.

  sealedctl audit query --type 'run.*' --since 1h
  sealedctl audit query -f -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if run != "" {
				if _, err := sealed.ParseRunID(run); err != nil {
					return err
				}
			}
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			var from time.Time
			if since > 0 {
				from = time.Now().Add(-since)
			}
			return a.query(cmd.Context(), e, vaultclient.LogFilter{Type: typ, Run: sealed.RunID(run)}, from, follow)
		},
	}
	cmd.Flags().StringVar(&run, "run", "", "only entries of this run")
	cmd.Flags().StringVar(&typ, "type", "", "only entries of this type; a final .* matches a family")
	cmd.Flags().DurationVar(&since, "since", 0, "only entries not older than this")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on and show new entries")
	_ = cmd.RegisterFlagCompletionFunc("run", a.complete(runIDs("")))
	return cmd
}

func (a *app) query(ctx context.Context, e *vaultclient.Engine, f vaultclient.LogFilter, since time.Time, follow bool) error {
	for {
		entries, next, err := e.LogEntries(ctx, f)
		if ctx.Err() != nil && follow {
			return nil
		}
		if err != nil {
			return err
		}
		for _, x := range entries {
			if x.Time.Before(since) {
				continue
			}
			err := a.line(x, func() { a.printf("%d  %s  %-22s %s %s\n", x.Seq, stamp(x.Time), x.Type, string(x.Run), string(x.Body)) })
			if err != nil {
				return err
			}
		}
		if next > f.From {
			f.From = next
			continue
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pollEvery):
		}
	}
}

func newAuditPullCmd(a *app) *cobra.Command {
	var transcripts bool
	cmd := &cobra.Command{
		Use: "pull DIR", Short: "Take the log and the records away as files", Args: cobra.ExactArgs(1),
		Long: `Pull writes the log at one checkpoint, and the records of the runs that had
finished by then, into a new directory. It verifies nothing: verify does.
--transcripts adds the redacted output of runs of this machine.

  sealedctl audit pull evidence --transcripts`,
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			out, err := a.pull(cmd.Context(), e, args[0], transcripts)
			if err != nil {
				return err
			}
			return a.line(out, func() {
				a.printf("%s: %d entries, %d records, %d transcripts\n", out.Dir, out.Entries, out.Records, out.Transcripts)
			})
		},
	}
	cmd.Flags().BoolVar(&transcripts, "transcripts", false, "add stdout.log and stderr.log of runs of this machine")
	return cmd
}

// pulled is what audit pull took away.
type pulled struct {
	Dir         string `json:"dir"`
	Entries     uint64 `json:"entries"`
	Records     int    `json:"records"`
	Transcripts int    `json:"transcripts"`
}

func (a *app) pull(ctx context.Context, e *vaultclient.Engine, dir string, transcripts bool) (pulled, error) {
	out := pulled{Dir: dir}
	if err := audit.WriteDir(ctx, e.LogReader(), dir); err != nil {
		return out, err
	}
	size, err := treeSize(filepath.Join(dir, "checkpoint"))
	if err != nil {
		return out, err
	}
	out.Entries = size
	f := vaultclient.LogFilter{Type: audit.TypeFinished, Limit: 1000}
	for f.From < size {
		entries, next, err := e.LogEntries(ctx, f)
		if err != nil {
			return out, err
		}
		for _, x := range entries {
			if x.Seq >= size {
				break // finished after the checkpoint: its record is not part of this export
			}
			if err := a.pullRun(ctx, e, x.Run, transcripts, &out); err != nil {
				return out, err
			}
		}
		if next <= f.From {
			break
		}
		f.From = next
	}
	return out, nil
}

func (a *app) pullRun(ctx context.Context, e *vaultclient.Engine, run sealed.RunID, transcripts bool, out *pulled) error {
	if _, err := sealed.ParseRunID(string(run)); err != nil { // it becomes a path
		return fmt.Errorf("pulling record: %w", err)
	}
	record, err := e.Record(ctx, run)
	if err != nil {
		return fmt.Errorf("pulling record: %w", err)
	}
	if err := audit.WriteRecord(out.Dir, string(run), record); err != nil {
		return err
	}
	out.Records++
	if !transcripts {
		return nil
	}
	for _, name := range []string{"stdout.log", "stderr.log"} {
		data, err := os.ReadFile(filepath.Join(a.runDir(run), name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("pulling transcript: %w", err)
		}
		to := filepath.Join(out.Dir, "records", string(run))
		if err := os.MkdirAll(to, 0o700); err != nil {
			return fmt.Errorf("pulling transcript: %w", err)
		}
		if err := os.WriteFile(filepath.Join(to, name), data, 0o600); err != nil {
			return fmt.Errorf("pulling transcript: %w", err)
		}
		out.Transcripts++
	}
	return nil
}

// treeSize reads the size in a checkpoint: its second line. What is wrong with
// the rest, verify finds.
func treeSize(path string) (uint64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("reading checkpoint: %w", err)
	}
	lines := strings.SplitN(string(text), "\n", 3)
	var size uint64
	if len(lines) == 3 {
		_, err = fmt.Sscanf(lines[1], "%d", &size)
	}
	if len(lines) != 3 || err != nil {
		return 0, fmt.Errorf("reading checkpoint: malformed: %w", sealed.ErrInvalid)
	}
	return size, nil
}

type verifyFlags struct {
	key, trust          string
	witnesses, previous []string
	partial, forget     bool
}

func newAuditVerifyCmd(a *app) *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use: "verify DIR [--key VKEY | --trust FILE]", Short: "Verify an exported log and its records from files alone", Args: cobra.ExactArgs(1),
		Long: `Verify contacts nobody. The log's key comes from --key or from a trust file,
never from the export. The checkpoint is remembered, so that a log that was cut
back or begun anew is found next time. Whatever is malformed or does not agree is
a failure that names the entry.

  sealedctl audit verify evidence --trust /etc/sealed/trust.json`,
		RunE: func(_ *cobra.Command, args []string) error { return a.verify(args[0], f) },
	}
	cmd.Flags().StringVar(&f.key, "key", "", "the log's verifier key (origin+hash+key)")
	cmd.Flags().StringVar(&f.trust, "trust", "", "trust file that names the key (default: the installed one)")
	cmd.Flags().StringArrayVar(&f.previous, "previous-key", nil, "verifier key that the log had before (repeatable)")
	cmd.Flags().StringArrayVar(&f.witnesses, "witness", nil, "verifier key of a witness (repeatable)")
	cmd.Flags().BoolVar(&f.partial, "partial", false, "accept that records are absent, and list them")
	cmd.Flags().BoolVar(&f.forget, "no-pin", false, "neither compare with the remembered checkpoint nor remember this one")
	cmd.MarkFlagsMutuallyExclusive("key", "trust")
	return cmd
}

// verified is the answer of audit verify.
type verified struct {
	OK       bool         `json:"ok"`
	Report   audit.Report `json:"report"`
	Failures []string     `json:"failures"`
}

func (a *app) verify(dir string, f verifyFlags) error {
	opts, err := a.verifyOptions(f)
	if err != nil {
		return err
	}
	report, verr := audit.VerifyDir(dir, opts)
	out := verified{OK: verr == nil, Report: report, Failures: failures(verr)}
	err = a.print(out, func(w io.Writer) {
		if verr == nil {
			_, _ = fmt.Fprint(w, report.String())
		}
		for _, line := range out.Failures {
			row(w, "FAILED", line)
		}
	})
	if err != nil {
		return err
	}
	if verr != nil {
		return fmt.Errorf("verifying %s: %d failures: the export is not to be trusted", dir, len(out.Failures))
	}
	return nil
}

// failures flattens a joined error, one line for each *audit.Failure; other
// errors are one line.
func failures(err error) []string {
	out := []string{}
	var walk func(error)
	walk = func(err error) {
		switch x := err.(type) {
		case *audit.Failure:
			out = append(out, x.Error())
		case interface{ Unwrap() []error }:
			for _, e := range x.Unwrap() {
				walk(e)
			}
		default:
			if e := errors.Unwrap(err); e != nil && hasFailure(e) {
				walk(e)
				return
			}
			out = append(out, err.Error())
		}
	}
	if err != nil {
		walk(err)
	}
	return out
}

func hasFailure(err error) bool {
	var f *audit.Failure
	return errors.As(err, &f)
}

func (a *app) verifyOptions(f verifyFlags) (audit.Options, error) {
	o := audit.Options{VerifierKey: f.key, PreviousKeys: f.previous, Partial: f.partial}
	if f.key == "" {
		path := a.trustFile
		if f.trust != "" {
			path = f.trust
		}
		t, err := readTrust(path)
		if err != nil {
			return o, &hintError{err: err, hint: "name the log's key with --key, or a trust file with --trust"}
		}
		o.VerifierKey = t.LogKey
	}
	for _, key := range f.witnesses {
		v, err := note.NewVerifier(key)
		if err != nil {
			return o, usagef("--witness wants a verifier key (name+hash+key)")
		}
		o.Witnesses = append(o.Witnesses, v)
	}
	if f.forget {
		return o, nil
	}
	var err error
	o.PinFile, err = a.pinFile(o.VerifierKey)
	return o, err
}

// readTrust reads a trust file. Who may have written it is doctor's question.
func readTrust(path string) (sealed.TrustFile, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return sealed.TrustFile{}, fmt.Errorf("reading trust file: %w", err)
	}
	t, err := sealed.ParseTrustFile(b)
	if err != nil {
		return t, fmt.Errorf("reading trust file %s: %w", path, err)
	}
	return t, nil
}
