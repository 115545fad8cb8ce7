package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/decisionlog"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// recorded says which recorded decisions are meant, and where they are. Those of a
// shadow decided nothing, and are meant only where that is said.
type recorded struct {
	run, from string
	since     time.Duration
	shadows   bool // those of a shadow as well
}

func (r *recorded) register(cmd *cobra.Command, a *app) {
	cmd.Flags().StringVar(&r.run, "run", "", "only decisions of this run")
	cmd.Flags().DurationVar(&r.since, "since", 0, "only decisions not older than this")
	cmd.Flags().StringVar(&r.from, "from", "", "file of policy decisions, or directory of audit pull (default: ask the engine)")
	_ = cmd.RegisterFlagCompletionFunc("run", a.complete(runIDs("")))
}

// each calls f for every decision that is meant, oldest first. What is read
// proves nothing by itself: see audit verify.
func (r recorded) each(ctx context.Context, a *app, f func(decisionlog.Event) error) error {
	if r.run != "" {
		if _, err := sealed.ParseRunID(r.run); err != nil {
			return err
		}
	}
	var begin time.Time
	if r.since > 0 {
		begin = time.Now().Add(-r.since)
	}
	wanted := func(e decisionlog.Event) error {
		if e.Timestamp.Before(begin) || e.Shadow && !r.shadows {
			return nil
		}
		if r.run != "" {
			if run, _ := e.About(); e.Labels["run"] != r.run && string(run) != r.run {
				return nil
			}
		}
		return f(e)
	}
	if r.from == "" {
		e, err := a.engine(ctx)
		if err != nil {
			return &hintError{err: err, hint: "name recorded decisions with --from, or set VAULT_ADDR and log in"}
		}
		return eachLogged(ctx, e, sealed.RunID(r.run), begin, wanted)
	}
	st, err := os.Stat(r.from)
	if err != nil {
		return fmt.Errorf("reading decisions: %w", err)
	}
	if st.IsDir() {
		return eachExported(ctx, r.from, wanted)
	}
	file, err := os.Open(r.from)
	if err != nil {
		return fmt.Errorf("reading decisions: %w", err)
	}
	defer func() { _ = file.Close() }()
	if err := decisionlog.Read(file, wanted); err != nil {
		return fmt.Errorf("reading decisions of %s: %w", r.from, err)
	}
	return nil
}

// chunks calls f with the decisions that are meant, some at a time and in order:
// there can be many.
func (r recorded) chunks(ctx context.Context, a *app, f func([]decisionlog.Event) error) error {
	var some []decisionlog.Event
	err := r.each(ctx, a, func(e decisionlog.Event) error {
		if some = append(some, e); len(some) < 4096 {
			return nil
		}
		err := f(some)
		some = some[:0]
		return err
	})
	if err != nil || len(some) == 0 {
		return err
	}
	return f(some)
}

// eachLogged asks the engine for the log from begin on. Its entries are in the
// order of time, so that where begin lies can be searched for.
func eachLogged(ctx context.Context, e *vaultclient.Engine, run sealed.RunID, begin time.Time, f func(decisionlog.Event) error) error {
	filter := vaultclient.LogFilter{Run: run, Limit: 1000}
	if run == "" && !begin.IsZero() {
		var err error
		if filter.From, err = firstSince(ctx, e, begin); err != nil {
			return err
		}
	}
	for {
		entries, next, err := e.LogEntries(ctx, filter)
		if err != nil {
			return err
		}
		for _, x := range entries {
			labels := map[string]string{"entry": strconv.FormatUint(x.Seq, 10), "type": x.Type, "run": string(x.Run)}
			if err := eachOf(x.Body, labels, f); err != nil {
				return fmt.Errorf("entry %d: %w", x.Seq, err)
			}
		}
		if next <= filter.From {
			return nil
		}
		filter.From = next
	}
}

// slack is how much earlier than its entry a decision may have been taken.
const slack = 10 * time.Minute

// firstSince returns the number of an entry before which all are older.
func firstSince(ctx context.Context, e *vaultclient.Engine, begin time.Time) (uint64, error) {
	begin = begin.Add(-slack)
	size := uint64(1)
	older := func(seq uint64) (bool, error) {
		entries, _, err := e.LogEntries(ctx, vaultclient.LogFilter{From: seq, Limit: 1})
		return len(entries) == 1 && entries[0].Time.Before(begin), err
	}
	for {
		old, err := older(size)
		if err != nil {
			return 0, err
		}
		if !old {
			break
		}
		size *= 2
	}
	low, high := size/2, size
	for low < high {
		mid := low + (high-low)/2
		old, err := older(mid)
		if err != nil {
			return 0, err
		}
		if old {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low, nil
}

// eachExported reads the bodies in a directory of audit pull.
func eachExported(ctx context.Context, dir string, f func(decisionlog.Event) error) error {
	size, err := treeSize(filepath.Join(dir, "checkpoint"))
	if err != nil {
		return err
	}
	for seq := range size {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := os.ReadFile(filepath.Join(dir, "sides", strconv.FormatUint(seq, 10)+".json"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // erased; audit verify tells whether it may be
		}
		if err != nil {
			return fmt.Errorf("reading decisions: %w", err)
		}
		side, err := audit.ParseSide(data)
		if err != nil {
			return fmt.Errorf("entry %d: %w: %w", seq, sealed.ErrInvalid, err)
		}
		if err := eachOf(side.Body, map[string]string{"entry": strconv.FormatUint(seq, 10)}, f); err != nil {
			return fmt.Errorf("entry %d: %w", seq, err)
		}
	}
	return nil
}

func eachOf(body []byte, labels map[string]string, f func(decisionlog.Event) error) error {
	events, err := decisionlog.FromBody(body, labels)
	if err != nil {
		return err
	}
	for _, e := range events {
		if err := f(e); err != nil {
			return err
		}
	}
	return nil
}

func newPolicyDecisionsCmd(a *app) *cobra.Command {
	var r recorded
	cmd := &cobra.Command{
		Use: "decisions [--run ID] [--since 24h] [--from DIR]", Short: "Take recorded decisions away as OPA decision logs", Args: cobra.NoArgs,
		Long: `Decisions writes what the policy decided, oldest first: the request as the policy
saw it, the answer, the bundle's digest and the time, one JSON object on a line in
the shape of OPA's decision logs. Names only; what the agent said is erased. What a
shadow said decided nothing: it is left out unless --shadow is given, and marked.

  sealedctl policy decisions --since 24h > decisions.jsonl`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			enc := json.NewEncoder(a.stdout)
			return r.each(cmd.Context(), a, func(e decisionlog.Event) error {
				if err := enc.Encode(e); err != nil {
					return fmt.Errorf("writing output: %w", err)
				}
				return nil
			})
		},
	}
	r.register(cmd, a)
	cmd.Flags().BoolVar(&r.shadows, "shadow", false, "with what the shadow said, for policy shadow report and policy replay")
	return cmd
}

// progress says how far long work has come, on a terminal.
type progress struct {
	a     *app
	what  string
	done  int
	shown time.Time
}

func (p *progress) step() {
	p.done++
	if p.a.terminal() && !p.a.quiet && time.Since(p.shown) > 200*time.Millisecond {
		p.shown = time.Now()
		_, _ = fmt.Fprintf(p.a.stderr, "\r%s: %d", p.what, p.done)
	}
}

// end leaves the line.
func (p *progress) end() {
	if !p.shown.IsZero() {
		_, _ = fmt.Fprintf(p.a.stderr, "\r%s: %d\n", p.what, p.done)
	}
}
