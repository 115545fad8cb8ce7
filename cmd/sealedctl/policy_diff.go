package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"reflect"
	"slices"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/decisionlog"
	"sealed.dev/sealed/internal/sealed"
)

// A policyDiff says what another bundle would have decided otherwise.
type policyDiff struct {
	Decisions int           `json:"decisions"`
	Skipped   int           `json:"skipped"`            // whose request was not kept
	Overlays  int           `json:"overlays,omitempty"` // answers of overlays, which are left out
	Votes     int           `json:"votes,omitempty"`    // answers about votes, which are left out
	Changes   []groupChange `json:"changes"`
}

// A groupChange is one kind of change for one agent, key and workflow.
type groupChange struct {
	Change   string         `json:"change"` // newly denied, newly asked, newly allowed, other reasons, other obligations
	Agent    sealed.Name    `json:"agent"`
	Key      sealed.KeyName `json:"key"`
	Workflow string         `json:"workflow"`
	Count    int            `json:"count"`
	Reasons  []string       `json:"reasons"` // codes under the new bundle
	Example  string         `json:"example"` // a decision_id
}

func newPolicyDiffCmd(a *app) *cobra.Command {
	var r recorded
	cmd := &cobra.Command{
		Use: "diff OLD NEW (--since 168h | --run ID | --from FILE|DIR)", Short: "Show what another policy would have decided otherwise", Args: cobra.ExactArgs(2),
		Long: `Diff gives recorded requests to two bundles, at their times of then, and shows what
would be newly denied, newly asked for and newly allowed, by agent, key and workflow.
It compares what these bundles say by themselves, and leaves overlays and votes out. OLD and NEW are bundle files, directories of policies, default, or active.

  sealedctl policy diff active policies --since 168h
  sealedctl policy diff old.tar.gz policies --from decisions.jsonl`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if r.run == "" && r.since == 0 && r.from == "" {
				return usagef("policy diff wants recorded requests: --since, --run or --from")
			}
			out, err := a.diffPolicies(cmd.Context(), args[0], args[1], r)
			if err != nil {
				return err
			}
			return a.print(out, func(w io.Writer) { diffTable(w, out) })
		},
	}
	r.register(cmd, a)
	return cmd
}

func (a *app) diffPolicies(ctx context.Context, older, newer string, r recorded) (policyDiff, error) {
	var by []decisionlog.Decider
	for _, arg := range []string{older, newer} {
		b, err := a.inspect(ctx, arg)
		if err != nil {
			return policyDiff{}, fmt.Errorf("%s: %w", arg, err)
		}
		by = append(by, b)
	}
	return a.diffRecorded(ctx, r, by)
}

// A changeGroup is what a groupChange counts.
type changeGroup struct {
	change   string
	agent    sealed.Name
	key      sealed.KeyName
	workflow string
}

// diffRecorded compares two deciders, by, over recorded requests.
func (a *app) diffRecorded(ctx context.Context, r recorded, by []decisionlog.Decider) (policyDiff, error) {
	out, groups := policyDiff{Changes: []groupChange{}}, map[changeGroup]*groupChange{}
	p := progress{a: a, what: "deciding"}
	defer p.end()
	both := func(decisionlog.Event) ([]decisionlog.Decider, error) { return by, nil }
	err := r.chunks(ctx, a, func(events []decisionlog.Event) error {
		events = slices.DeleteFunc(events, func(e decisionlog.Event) bool {
			switch {
			case e.Vote():
				out.Votes++
			case e.Overlay(): // the bundle below was asked the same
				out.Overlays++
			default:
				return false
			}
			return true
		})
		return decisionlog.Redecide(ctx, events, both, func(v decisionlog.Verdict) {
			p.step()
			out.count(groups, v)
		})
	})
	for _, g := range groups {
		out.Changes = append(out.Changes, *g)
	}
	sortChanges(out.Changes)
	return out, err
}

func (d *policyDiff) count(groups map[changeGroup]*groupChange, v decisionlog.Verdict) {
	d.Decisions++
	in, err := v.Event.Request()
	if v.Err != nil || err != nil {
		d.Skipped++
		return
	}
	change := changeOf(v.Got[0], v.Got[1])
	if change == "" {
		return
	}
	at := changeGroup{change, in.Agent.Name, in.Key.Name, in.Run.Workflow}
	g := groups[at]
	if g == nil {
		g = &groupChange{Change: change, Agent: at.agent, Key: at.key, Workflow: at.workflow, Reasons: []string{}, Example: v.Event.DecisionID}
		groups[at] = g
	}
	g.Count++
	for _, reason := range v.Got[1].Reasons {
		if !slices.Contains(g.Reasons, reason.Code) {
			g.Reasons = append(g.Reasons, reason.Code)
		}
	}
}

// changes are the kinds of change, the ones to look at first.
var changes = [...]string{"newly allowed", "newly asked", "newly denied", "other obligations", "other reasons"}

func rank(change string) int { return slices.Index(changes[:], change) }

// changeOf names the change from one decision to another, or "".
func changeOf(older, newer sealed.Decision) string {
	if older.Effect != newer.Effect {
		switch newer.Effect {
		case sealed.EffectAllow:
			return changes[0]
		case sealed.EffectRequireApproval:
			return changes[1]
		}
		return changes[2]
	}
	if !reflect.DeepEqual(older.Obligations, newer.Obligations) {
		return changes[3]
	}
	if !slices.EqualFunc(older.Reasons, newer.Reasons, func(x, y sealed.Reason) bool { return x.Code == y.Code }) {
		return changes[4]
	}
	return ""
}

func diffTable(w io.Writer, d policyDiff) {
	for _, c := range d.Changes {
		row(w, c.Change, c.Count, c.Agent, c.Key, cmp.Or(c.Workflow, "-"), join(c.Reasons))
	}
	changed := 0
	for _, c := range d.Changes {
		changed += c.Count
	}
	row(w, fmt.Sprintf("%d requests", d.Decisions), fmt.Sprintf("%d change", changed), fmt.Sprintf("%d skipped", d.Skipped))
	if d.Overlays > 0 {
		row(w, fmt.Sprintf("%d answers of an overlay are left out", d.Overlays))
	}
	if d.Votes > 0 {
		row(w, fmt.Sprintf("%d answers about votes are left out", d.Votes))
	}
}
