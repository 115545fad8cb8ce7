package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/decisionlog"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	opabundle "sealed.dev/sealed/opa-bundle"
)

// A shelf finds bundles by their digest: among files that were named, among
// those that this machine uploaded, at the engine. What is found has the digest,
// so that it does not matter who had it, nor who signed it. It is safe for
// concurrent use.
type shelf struct {
	a     *app
	mu    sync.Mutex
	have  map[sealed.Digest]*opabundle.Inspection
	errs  map[sealed.Digest]error
	stock *vaultclient.Engine // nil: don't ask
}

// newShelf reads the files that were named. Unless offline, the engine is asked
// for the others.
func (a *app) newShelf(ctx context.Context, files []string, offline bool) (*shelf, error) {
	s := &shelf{a: a, have: map[sealed.Digest]*opabundle.Inspection{}, errs: map[sealed.Digest]error{}}
	for _, name := range files {
		raw, err := readBundleFile(name)
		if err != nil {
			return nil, err
		}
		b, err := opabundle.Inspect(ctx, raw, authorLimits)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		s.have[b.Ref().Digest] = b
	}
	if !offline && a.addr != "" {
		var err error
		if s.stock, err = a.engine(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// get returns the bundle of a digest, or an error that wraps sealed.ErrNotFound.
func (s *shelf) get(ctx context.Context, d sealed.Digest) (*opabundle.Inspection, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, err := s.have[d], s.errs[d]; b != nil || err != nil {
		return b, err
	}
	b, err := s.find(ctx, d)
	if err == nil {
		s.have[d] = b
	} else {
		s.errs[d] = err
	}
	return b, err
}

func (s *shelf) find(ctx context.Context, d sealed.Digest) (*opabundle.Inspection, error) {
	if err := d.Validate("bundle"); err != nil { // it becomes a path
		return nil, err
	}
	raw, err := readBundleFile(s.a.keptBundle(d))
	if err == nil {
		if b, err := inspectDigest(ctx, raw, d); err == nil {
			return b, nil
		}
	}
	if s.stock != nil {
		return inspectStored(ctx, s.stock, d)
	}
	return nil, fmt.Errorf("finding bundle %.12s…: %w", d, sealed.ErrNotFound)
}

// keptBundle is where upload keeps a copy: the engine forgets old bundles.
func (a *app) keptBundle(d sealed.Digest) string {
	return filepath.Join(a.stateDir(), "bundles", string(d)+".tar.gz")
}

func (a *app) keepBundle(d sealed.Digest, raw []byte) error {
	name := a.keptBundle(d)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return fmt.Errorf("keeping bundle: %w", err)
	}
	if err := replaceFile(name, raw); err != nil {
		return fmt.Errorf("keeping bundle: %w", err)
	}
	return nil
}

func inspectStored(ctx context.Context, e *vaultclient.Engine, d sealed.Digest) (*opabundle.Inspection, error) {
	raw, err := e.PolicyBundle(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("finding bundle %.12s…: %w", d, err)
	}
	return inspectDigest(ctx, raw, d)
}

func inspectDigest(ctx context.Context, raw []byte, d sealed.Digest) (*opabundle.Inspection, error) {
	b, err := opabundle.Inspect(ctx, raw, authorLimits)
	if err == nil && b.Ref().Digest != d {
		err = fmt.Errorf("finding bundle %.12s…: it has another digest: %w", d, sealed.ErrInvalid)
	}
	return b, err
}

// A mismatch is a recorded decision that its bundle does not give.
type mismatch struct {
	Decision string          `json:"decision_id"`
	Entry    string          `json:"entry,omitempty"`
	Run      sealed.RunID    `json:"run,omitempty"`
	Key      sealed.KeyName  `json:"key,omitempty"`
	Bundle   sealed.Digest   `json:"bundle"`
	Problem  string          `json:"problem"`
	Recorded sealed.Effect   `json:"recorded"`
	Derived  sealed.Effect   `json:"derived,omitempty"`
	Shadow   bool            `json:"shadow,omitempty"` // it decided nothing
	Reasons  []sealed.Reason `json:"derived_reasons,omitempty"`
}

// redecided is the answer of policy replay.
type redecided struct {
	Decisions  int        `json:"decisions"`
	Matching   int        `json:"matching"`
	Overlays   int        `json:"overlays,omitempty"` // of the decisions, those of an overlay
	Votes      int        `json:"votes,omitempty"`    // and those about a vote
	Mismatches []mismatch `json:"mismatches"`
	Shadows    struct {
		Decisions  int `json:"decisions"`
		Matching   int `json:"matching"`
		NotDerived int `json:"not_derived"` // the bundle is not at hand, or there was no answer in time
	} `json:"shadows"` // what a shadow said; not among the decisions
}

// count adds a verdict, or what a shadow said beside one.
func (r *redecided) count(v decisionlog.Verdict) {
	m, bad := compared(v)
	if !v.Event.Shadow {
		r.Decisions++
		if v.Event.Overlay() {
			r.Overlays++
		}
		if v.Event.Vote() {
			r.Votes++
		}
		if !bad {
			r.Matching++
		}
	} else {
		r.Shadows.Decisions++
		switch {
		case bad && (v.Err != nil || late(v.Event.Result)):
			r.Shadows.NotDerived++
			return
		case !bad:
			r.Shadows.Matching++
		}
	}
	if bad {
		r.Mismatches = append(r.Mismatches, m)
	}
}

// late reports whether a shadow did not answer in its time, which a bundle that is
// asked again may do.
func late(d sealed.Decision) bool {
	return len(d.Reasons) == 1 && d.Reasons[0].Code == sealed.ReasonTimeout
}

func newPolicyReplayCmd(a *app) *cobra.Command {
	var r recorded
	var bundles []string
	cmd := &cobra.Command{
		Use: "replay [RUN | --since 24h | --from FILE|DIR] [--bundle FILE]…", Short: "Derive recorded decisions again, and compare", Args: cobra.MaximumNArgs(1),
		Long: `Replay gives every recorded request to the bundle that decided it, at the time of
then, and compares the answers byte for byte. It fails if one differs, or can't be
derived. Bundles are found by digest: files of --bundle, those that this machine
uploaded, and those that the engine still has. With --from and --bundle it is offline.
An overlay's answers are derived from the overlay. What a shadow said is derived as
well, and counted apart; that its bundle is gone is no failure.

  sealedctl policy replay --since 24h
  sealedctl policy replay --from evidence --bundle policy-7.tar.gz --bundle policy-8.tar.gz`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				if r.run != "" {
					return usagef("policy replay wants a run or --run, not both")
				}
				r.run = args[0]
			}
			if r.run == "" && r.since == 0 && r.from == "" {
				return usagef("policy replay wants a run, --since or --from")
			}
			out, err := a.replayDecisions(cmd.Context(), r, bundles)
			if err != nil {
				return err
			}
			if err := a.print(out, func(w io.Writer) { redecidedTable(w, out) }); err != nil {
				return err
			}
			if n := len(out.Mismatches); n > 0 {
				return fmt.Errorf("replaying decisions: %d of %d are not what their bundle decides", n, out.Decisions+out.Shadows.Decisions)
			}
			if out.Decisions == 0 {
				return errors.New("replaying decisions: there are none")
			}
			return nil
		},
	}
	r.register(cmd, a)
	cmd.Flags().StringArrayVar(&bundles, "bundle", nil, "bundle file (repeatable)")
	cmd.ValidArgsFunction = a.complete(runIDs(""))
	return cmd
}

func (a *app) replayDecisions(ctx context.Context, r recorded, bundles []string) (redecided, error) {
	out := redecided{Mismatches: []mismatch{}}
	r.shadows = true
	shelf, err := a.newShelf(ctx, bundles, r.from != "" && len(bundles) > 0)
	if err != nil {
		return out, err
	}
	p := progress{a: a, what: "replaying"}
	defer p.end()
	own := func(e decisionlog.Event) ([]decisionlog.Decider, error) {
		b, err := shelf.get(ctx, e.Ref().Digest)
		if err == nil && b.Ref() != e.Ref() {
			err = fmt.Errorf("the bundle has another sequence: %w", sealed.ErrInvalid)
		}
		return []decisionlog.Decider{b}, err
	}
	err = r.chunks(ctx, a, func(events []decisionlog.Event) error {
		return decisionlog.Redecide(ctx, events, own, func(v decisionlog.Verdict) {
			p.step()
			out.count(v)
		})
	})
	return out, err
}

// compared reports a verdict that is not the recorded one. If the request lacks
// what the agent said, the difference may lie there; that is said, and still no
// match.
func compared(v decisionlog.Verdict) (mismatch, bool) {
	e := v.Event
	if v.Err == nil && e.Matches(v.Got[0]) {
		return mismatch{}, false
	}
	m := mismatch{Decision: e.DecisionID, Entry: e.Labels["entry"], Bundle: e.Ref().Digest, Recorded: e.Result.Effect, Shadow: e.Shadow}
	m.Run, m.Key = e.About()
	switch {
	case v.Err != nil:
		m.Problem = v.Err.Error()
	case slices.ContainsFunc(e.Erased, func(at string) bool { return at == "/input/reason" || at == "/input/approval/reason" }):
		m.Problem = "another decision; the agent's reason, which was erased, may have counted"
	default:
		m.Problem = "another decision"
	}
	if v.Err == nil {
		m.Derived, m.Reasons = v.Got[0].Effect, v.Got[0].Reasons
	}
	return m, true
}

func redecidedTable(w io.Writer, r redecided) {
	for _, m := range r.Mismatches {
		what := "MISMATCH"
		if m.Shadow {
			what += " (shadow)"
		}
		row(w, what, m.Run, m.Key, fmt.Sprintf("recorded %s, derived %s", m.Recorded, m.Derived), m.Problem)
	}
	row(w, fmt.Sprintf("%d decisions", r.Decisions), fmt.Sprintf("%d match", r.Matching))
	if r.Overlays > 0 {
		row(w, fmt.Sprintf("%d of them of an overlay", r.Overlays))
	}
	if r.Votes > 0 {
		row(w, fmt.Sprintf("%d of them about votes", r.Votes))
	}
	if s := r.Shadows; s.Decisions > 0 {
		row(w, fmt.Sprintf("%d of a shadow", s.Decisions), fmt.Sprintf("%d match", s.Matching), fmt.Sprintf("%d not derived: no bundle, or no answer in time", s.NotDerived))
	}
}
