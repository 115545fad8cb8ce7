package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
	opabundle "sealed.dev/sealed/opa-bundle"
	"sealed.dev/sealed/rego"
)

type evalFlags struct {
	file, bundle, at, expect string
	asserted                 bool
	tags                     []string
	changes                  []string // names of the flags that change the usual request
	in                       sealed.Input
}

func newPolicyEvalCmd(a *app) *cobra.Command {
	f := evalFlags{in: usualRequest()}
	cmd := &cobra.Command{
		Use: "eval [--bundle FILE|DIR|default] [-f REQUEST | flags]", Short: "Ask a policy about a request, without any effect", Args: cobra.NoArgs,
		Long: `Eval asks a bundle about one use of one key: the one in force (the engine answers),
or with --bundle a file, a directory of policies, or the default ones, offline; then
it shows the rules, too. The request is a JSON or YAML file like those that policy
init makes, or a usual one of low risk, changed by flags. Nothing is issued or logged.

  sealedctl policy eval --bundle default --risk high --agent codex
  sealedctl policy eval -f requests/high-risk.json --expect require_approval`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, err := f.request(cmd, a)
			if err != nil {
				return err
			}
			x, err := a.eval(cmd.Context(), f.bundle, in)
			if err != nil {
				return err
			}
			if err := a.print(x, func(w io.Writer) { explanationTable(w, x) }); err != nil {
				return err
			}
			if f.expect != "" && string(x.Decision.Effect) != f.expect {
				return fmt.Errorf("evaluating policy: the effect is %s, not %s", x.Decision.Effect, f.expect)
			}
			return nil
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.file, "file", "f", "", "file with the request, JSON or YAML; - for standard input")
	fl.StringVar(&f.bundle, "bundle", "", "bundle file, directory of policies, default or active (default: ask the engine)")
	fl.StringVar(&f.at, "at", "", "time of the request, RFC 3339 (default: that of the file, or now)")
	fl.StringVar(&f.expect, "expect", "", "fail unless this is the effect: allow, require_approval or deny")
	f.register(cmd)
	return cmd
}

// usualRequest is the example that the default policy allows.
func usualRequest() sealed.Input {
	var in sealed.Input
	data, err := fs.ReadFile(rego.Starter(), "starter/requests/low-risk.json")
	if err == nil {
		err = sealed.Decode(data, len(data), &in)
	}
	if err != nil {
		return sealed.Input{} // embedded and tested; nothing is denied by the policy
	}
	in.Time = time.Time{}
	return in
}

func (f *evalFlags) register(cmd *cobra.Command) {
	in, fl := &f.in, cmd.Flags()
	f.changes = []string{"tag", "unproven", "requester-matches", "ttl", "max-ttl"}
	for name, x := range map[string]struct {
		to   *string
		help string
	}{
		"phase":     {&in.Phase, "enqueue, issue or request"},
		"tenant":    {(*string)(&in.Tenant), "tenant"},
		"requester": {&in.Requester.Person, "person who asks"},
		"agent":     {(*string)(&in.Agent.Name), "agent of the run"},
		"spiffe-id": {&in.Agent.SPIFFEID, "attested identity"},
		"mode":      {&in.Run.Mode, "bare, sandboxed, identity or jit"},
		"workflow":  {&in.Run.Workflow, "workflow of the run"},
		"isolation": {&in.Run.Isolation, "own_uid, same_uid, container, pod or lambda"},
		"assurance": {&in.Run.Assurance, "attested or launcher"},
		"network":   {&in.Run.Network, "none, allowlist or full"},
		"profile":   {(*string)(&in.Profile.Name), "profile that defines the key"},
		"key":       {(*string)(&in.Key.Name), "name of the key"},
		"risk":      {&in.Key.Risk, "low, high or critical"},
		"delivery":  {(*string)(&in.Key.Delivery), "proxy or env"},
	} {
		f.changes = append(f.changes, name)
		fl.StringVar(x.to, name, *x.to, x.help)
	}
	for name, x := range map[string]struct {
		to   *[]string
		help string
	}{
		"group":             {&in.Requester.Groups, "groups of the requester"},
		"allowed-workflows": {&in.Profile.AllowedWorkflows, "workflows that the profile lists"},
		"key-agents":        {&in.Key.Agents, "agents that the key lists"},
		"key-workflows":     {&in.Key.Workflows, "workflows that the key lists"},
		"key-tags":          {&in.Key.Tags, "tags that the key lists"},
	} {
		f.changes = append(f.changes, name)
		fl.StringSliceVar(x.to, name, *x.to, x.help)
	}
	for _, t := range in.Run.Tags {
		f.tags = append(f.tags, t.Name)
	}
	fl.StringSliceVar(&f.tags, "tag", f.tags, "tags of the run")
	fl.BoolVar(&f.asserted, "unproven", false, "the requester may not assert workflow and tags")
	fl.BoolVar(&in.Key.RequesterMatches, "requester-matches", in.Key.RequesterMatches, "key or profile names the requester")
	fl.Int64Var(&in.Key.TTL, "ttl", in.Key.TTL, "seconds")
	fl.Int64Var(&in.Key.MaxTTL, "max-ttl", in.Key.MaxTTL, "seconds")
}

func (f *evalFlags) request(cmd *cobra.Command, a *app) (sealed.Input, error) {
	in := f.in
	in.Run.WorkflowProven, in.Run.Tags = !f.asserted, []sealed.InputTag{}
	for _, t := range f.tags {
		in.Run.Tags = append(in.Run.Tags, sealed.InputTag{Name: t, Proven: !f.asserted})
	}
	if f.file != "" {
		if i := slices.IndexFunc(f.changes, cmd.Flags().Changed); i >= 0 {
			return in, usagef("--%s does not change a request from a file", f.changes[i])
		}
		doc, err := a.document(f.file, 256<<10)
		if err != nil {
			return in, err
		}
		if doc, err = toJSON(doc); err != nil {
			return in, err
		}
		in = sealed.Input{}
		if err := sealed.Decode(doc, 256<<10, &in); err != nil {
			return in, fmt.Errorf("reading request: %w", err)
		}
	}
	if f.at != "" {
		at, err := time.Parse(time.RFC3339Nano, f.at)
		if err != nil {
			return in, usagef("--at wants a time such as 2026-05-01T10:00:00Z")
		}
		in.Time = at
	}
	if in.Time.IsZero() {
		in.Time = time.Now().UTC()
	}
	return in, nil
}

func (a *app) eval(ctx context.Context, bundle string, in sealed.Input) (opabundle.Explanation, error) {
	if bundle == "" {
		e, err := a.engine(ctx)
		if err != nil {
			return opabundle.Explanation{}, &hintError{err: err, hint: "name a bundle with --bundle (default: the shipped policies), or set VAULT_ADDR and log in"}
		}
		d, err := e.Decide(ctx, in)
		return opabundle.Explanation{Decision: d, Labels: []map[string]any{}, Rules: []opabundle.RuleTrace{}}, err
	}
	i, err := a.inspect(ctx, bundle)
	if err != nil {
		return opabundle.Explanation{}, err
	}
	return i.Explain(ctx, sealed.QuestionAuthz, in, in.Time)
}

// explanationTable shows the decision, then the described rules that held, then
// the facts that did not.
func explanationTable(w io.Writer, x opabundle.Explanation) {
	d := x.Decision
	row(w, "effect", d.Effect)
	for _, r := range d.Reasons {
		row(w, "reason", r.Code+": "+r.Msg)
	}
	if o := d.Obligations; d.Effect != sealed.EffectDeny {
		if o.TTL > 0 {
			row(w, "ttl", time.Duration(o.TTL)*time.Second)
		}
		row(w, "delivery", o.Delivery)
		if o.Approvals.Quorum > 0 {
			row(w, "approvals", fmt.Sprintf("%d of %s", o.Approvals.Quorum, join(o.Approvals.Groups)))
		}
		if o.Egress != "" {
			row(w, "egress", o.Egress)
		}
	}
	for _, l := range x.Labels {
		row(w, "label", fmt.Sprint(l))
	}
	for _, r := range x.Rules {
		if r.Held && r.Title != "" {
			row(w, "because", r.Rule, place(r), r.Title)
			factRows(w, r)
		}
	}
	for _, r := range x.Rules {
		if !r.Held && r.Stopped != "" && !alternative(x.Rules, r) {
			row(w, "not so", r.Rule, place(r), clip(r.Stopped))
			r.Facts = slices.DeleteFunc(slices.Clone(r.Facts), func(f opabundle.Fact) bool { return !strings.Contains(r.Stopped, f.Path) })
			factRows(w, r)
		}
	}
}

// alternative reports whether the document of a rule that did not hold has
// another rule that did, or whether the rule would have added a reason.
func alternative(rules []opabundle.RuleTrace, r opabundle.RuleTrace) bool {
	return r.Title != "" || slices.ContainsFunc(rules, func(o opabundle.RuleTrace) bool { return o.Held && o.Rule == r.Rule })
}

func place(r opabundle.RuleTrace) string {
	return fmt.Sprintf("%s:%d", strings.TrimPrefix(r.File, "/"), r.Line)
}

func factRows(w io.Writer, r opabundle.RuleTrace) {
	for _, f := range r.Facts {
		row(w, "", "", f.Path, clip(string(f.Value)))
	}
}
