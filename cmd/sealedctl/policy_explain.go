package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/decisionlog"
	"sealed.dev/sealed/internal/sealed"
	opabundle "sealed.dev/sealed/opa-bundle"
)

// A decisionWhy is one recorded decision with its reasons.
type decisionWhy struct {
	Decision string                `json:"decision_id"`
	Entry    string                `json:"entry,omitempty"`
	Time     time.Time             `json:"time"`
	Phase    string                `json:"phase"`
	Bundle   sealed.BundleRef      `json:"bundle"`
	Overlay  bool                  `json:"overlay,omitempty"` // the bundle is an overlay, over that of the decision before
	Matches  bool                  `json:"matches"`           // the bundle gives the recorded answer
	Why      opabundle.Explanation `json:"why"`
	Together *sealed.Decision      `json:"together,omitempty"` // of an overlay: what came of it and the bundle below it, as recorded
}

func newPolicyExplainCmd(a *app) *cobra.Command {
	r := recorded{}
	var bundles []string
	cmd := &cobra.Command{
		Use: "explain RUN KEY [--from FILE|DIR] [--bundle FILE]…", Short: "Say why a key of a run was decided so", Args: cobra.ExactArgs(2),
		Long: `Explain derives every recorded decision about a key again and shows, rule by rule,
why it came about: the rules that held, those that did not and where they stopped,
and the facts they read. Where an overlay was asked as well, it shows that, and what
came of the two. Bundles are found as policy replay finds them.

  sealedctl policy explain 01JD0Z5X7RS3X7Q4K5M6N7P8Q9 GITHUB_TOKEN`,
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := sealed.ParseKeyName(args[1])
			if err != nil {
				return err
			}
			r.run = args[0]
			return a.explain(cmd.Context(), r, key, bundles)
		},
	}
	cmd.Flags().StringVar(&r.from, "from", "", "file of policy decisions, or directory of audit pull (default: ask the engine)")
	cmd.Flags().StringArrayVar(&bundles, "bundle", nil, "bundle file (repeatable)")
	cmd.ValidArgsFunction = a.complete(runIDs(""))
	return cmd
}

func (a *app) explain(ctx context.Context, r recorded, key sealed.KeyName, bundles []string) error {
	if _, err := sealed.ParseRunID(r.run); err != nil {
		return err
	}
	shelf, err := a.newShelf(ctx, bundles, r.from != "" && len(bundles) > 0)
	if err != nil {
		return err
	}
	n := 0
	below := map[string]sealed.Decision{} // by decision_id
	err = r.each(ctx, a, func(e decisionlog.Event) error {
		in, err := e.Request()
		if err != nil || in.Key.Name != key {
			return nil // of a request that was not kept, nobody knows the key
		}
		n++
		b, err := shelf.get(ctx, e.Ref().Digest)
		if err != nil {
			return err
		}
		why, err := b.Explain(ctx, e.Question(), in, in.Time)
		if err != nil {
			return err
		}
		out := decisionWhy{Decision: e.DecisionID, Entry: e.Labels["entry"], Time: e.Timestamp, Phase: in.Phase, Bundle: e.Ref(), Matches: e.Matches(why.Decision), Why: why}
		if out.Overlay = e.Overlay(); !out.Overlay {
			below[e.DecisionID] = e.Result
		} else if base, ok := below[e.Beside]; ok {
			both := sealed.Combine(base, e.Result)
			out.Together = &both
		}
		return a.line(out, func() { _ = aligned(a.stdout, func(w io.Writer) { explainedTable(w, out) }) })
	})
	if err == nil && n == 0 {
		err = &hintError{err: fmt.Errorf("explaining %s: no decision about it was recorded: %w", key, sealed.ErrNotFound), hint: "sealedctl runs show " + r.run}
	}
	return err
}

func explainedTable(w io.Writer, x decisionWhy) {
	row(w, "decided", stamp(x.Time)+", at "+x.Phase)
	by := "by bundle"
	if x.Overlay {
		by = "by overlay"
	}
	row(w, by, fmt.Sprintf("%.12s… sequence %d", x.Bundle.Digest, x.Bundle.Sequence))
	if !x.Matches {
		row(w, "MISMATCH", "the recorded answer is another one: sealedctl policy replay")
	}
	explanationTable(w, x.Why)
	if x.Together != nil {
		row(w)
		row(w, "together with the bundle below")
		explanationTable(w, opabundle.Explanation{Decision: *x.Together})
	}
	row(w)
}
