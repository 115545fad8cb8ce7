package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/decisionlog"
	"sealed.dev/sealed/internal/sealed"
)

// A shadowReport says what a shadow would have decided otherwise.
type shadowReport struct {
	Shadow  sealed.BundleRef `json:"shadow"`  // the newest one of the time; zero: there was none
	Earlier int              `json:"earlier"` // answers of shadows before it, which are not compared
	Alone   int              `json:"alone"`   // decisions without an answer of the shadow
	policyDiff
	voteTally
}

// A voteTally counts answers about votes; who may vote has no key or workflow to
// count by.
type voteTally struct {
	Compared  int `json:"compared_votes,omitempty"`
	Otherwise int `json:"votes_otherwise,omitempty"` // of those, where the shadow's effect is another
}

func newShadowReportCmd(a *app) *cobra.Command {
	const usual = 24 * time.Hour
	r := recorded{shadows: true}
	cmd := &cobra.Command{
		Use: "report [--since 24h | --run ID] [--from FILE|DIR]", Short: "Show what the shadow would have decided otherwise", Args: cobra.NoArgs,
		Long: `Report compares, for every request in the log, what was decided and what the shadow
said: newly denied, newly asked for, newly allowed, other obligations; by agent, key
and workflow, as policy diff does; who may vote is counted apart. It looks at the newest shadow of the time only. Of
a file, it wants one with the shadow's answers: policy decisions --shadow.

  sealedctl policy shadow report --since 24h
  sealedctl policy shadow report --run 01JD0Z5X7RS3X7Q4K5M6N7P8Q9 -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if r.run == "" && r.from == "" && !cmd.Flags().Changed("since") {
				r.since = usual
			}
			out, err := a.reportShadow(cmd.Context(), r)
			if err != nil {
				return err
			}
			return a.print(out, func(w io.Writer) { shadowReportTable(w, out) })
		},
	}
	r.register(cmd, a)
	cmd.Flags().Lookup("since").Usage = "only decisions not older than this (default 24h, of a run or a file all)"
	return cmd
}

func (a *app) reportShadow(ctx context.Context, r recorded) (shadowReport, error) {
	p := newPairing()
	step := progress{a: a, what: "comparing"}
	defer step.end()
	err := r.each(ctx, a, func(e decisionlog.Event) error {
		step.step()
		p.add(e)
		return nil
	})
	return p.report(), err
}

// pairWindow is how many events may lie between a verdict and the shadow's answer to
// the same request. Both are in one write of the log, which has far fewer.
const pairWindow = 4096

// A pairing brings verdicts and the answers of shadows together.
type pairing struct {
	verdicts int // seen so far
	newest   sealed.BundleRef
	tallies  map[sealed.BundleRef]*tally     // by the shadow
	votes    map[sealed.BundleRef]*voteTally // by the shadow
	waiting  map[string]unpaired             // by the id of the verdict
	order    []string                        // of waiting
}

func newPairing() *pairing {
	return &pairing{waiting: map[string]unpaired{}, tallies: map[sealed.BundleRef]*tally{}, votes: map[sealed.BundleRef]*voteTally{}}
}

// unpaired is a verdict or an answer of a shadow; at is the number of the verdict.
type unpaired struct {
	decisionlog.Event
	at int
}

// A tally counts for one shadow.
type tally struct {
	policyDiff
	groups map[changeGroup]*groupChange
	first  int // number of the first verdict that it was asked about
}

func (p *pairing) add(e decisionlog.Event) {
	if e.Overlay() {
		return // a shadow is compared with the bundle that it would replace
	}
	id := e.DecisionID
	if e.Shadow {
		id, p.newest = e.Beside, e.Ref()
	} else if !e.Vote() {
		p.verdicts++
	}
	x := unpaired{e, p.verdicts}
	other, found := p.waiting[id]
	if !found || other.Shadow == e.Shadow { // or an id is there twice
		p.wait(id, x)
		return
	}
	delete(p.waiting, id)
	if e.Shadow {
		x, other = other, x
	}
	if x.Vote() {
		p.countVote(x.Result, other)
		return
	}
	t := p.tallies[other.Ref()]
	if t == nil {
		t = &tally{groups: map[changeGroup]*groupChange{}, first: x.at}
		p.tallies[other.Ref()] = t
	}
	t.first = min(t.first, x.at)
	t.count(t.groups, decisionlog.Verdict{Event: x.Event, Got: []sealed.Decision{x.Result, other.Result}})
}

func (p *pairing) countVote(verdict sealed.Decision, shadow unpaired) {
	v := p.votes[shadow.Ref()]
	if v == nil {
		v = &voteTally{}
		p.votes[shadow.Ref()] = v
	}
	v.Compared++
	if verdict.Effect != shadow.Result.Effect {
		v.Otherwise++
	}
}

func (p *pairing) wait(id string, x unpaired) {
	p.waiting[id] = x
	if p.order = append(p.order, id); len(p.order) > pairWindow {
		delete(p.waiting, p.order[0])
		p.order = p.order[1:]
	}
}

func (p *pairing) report() shadowReport {
	out := shadowReport{Shadow: p.newest, policyDiff: policyDiff{Changes: []groupChange{}}}
	for ref, t := range p.tallies {
		if ref != p.newest {
			out.Earlier += t.Decisions
			continue
		}
		out.Decisions, out.Skipped, out.Alone = t.Decisions, t.Skipped, p.verdicts-t.first+1-t.Decisions
		for _, g := range t.groups {
			out.Changes = append(out.Changes, *g)
		}
	}
	if v := p.votes[p.newest]; v != nil {
		out.voteTally = *v
	}
	sortChanges(out.Changes)
	return out
}

func shadowReportTable(w io.Writer, r shadowReport) {
	if r.Shadow.Digest == "" {
		row(w, "no shadow was asked")
		return
	}
	row(w, "shadow", fmt.Sprintf("%.12s… sequence %d", r.Shadow.Digest, r.Shadow.Sequence))
	diffTable(w, r.policyDiff)
	if r.Compared > 0 {
		row(w, fmt.Sprintf("%d votes", r.Compared), fmt.Sprintf("%d otherwise", r.Otherwise))
	}
	if r.Alone > 0 {
		row(w, fmt.Sprintf("%d decisions since then without the shadow's answer", r.Alone))
	}
	if r.Earlier > 0 {
		row(w, fmt.Sprintf("%d answers of earlier shadows are not compared", r.Earlier))
	}
}

// sortChanges puts the kinds to look at first, and the most frequent.
func sortChanges(changes []groupChange) {
	slices.SortFunc(changes, func(x, y groupChange) int {
		return cmp.Or(cmp.Compare(rank(x.Change), rank(y.Change)), cmp.Compare(y.Count, x.Count), cmp.Compare(x.Agent, y.Agent), cmp.Compare(x.Key, y.Key), cmp.Compare(x.Workflow, y.Workflow))
	})
}
