package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// A previewFlags describes a run on the command line.
type previewFlags struct {
	run                      sealed.PreviewRequest
	requester                string
	agent, workflow, deliver string
	tags                     []string
}

func (f *previewFlags) add(cmd *cobra.Command, withAgent bool) {
	if withAgent {
		cmd.Flags().StringVar(&f.agent, "agent", "", "the agent")
		_ = cmd.MarkFlagRequired("agent")
	}
	cmd.Flags().StringVar(&f.workflow, "workflow", "", "the workflow")
	cmd.Flags().StringSliceVar(&f.tags, "tag", nil, "a tag; may be repeated")
	cmd.Flags().StringVar(&f.run.Mode, "mode", "", "the mode (default jit)")
	cmd.Flags().StringVar(&f.run.Isolation, "isolation", "", "own_uid or same_uid (default own_uid)")
	cmd.Flags().StringVar(&f.run.Network, "network", "", "none, allowlist or full (default none)")
	cmd.Flags().BoolVar(&f.run.Interactive, "interactive", false, "a run on a terminal")
	cmd.Flags().StringVar(&f.deliver, "delivery", "", "what the agent would ask for (default: what each key needs)")
	cmd.Flags().StringVar(&f.requester, "as", "", "entity id of who would ask for the run (default: you)")
}

// request is the run of an agent.
func (f *previewFlags) request(profile, agent string) sealed.PreviewRequest {
	r := f.run
	r.Profile, r.Agent, r.Workflow, r.Delivery = sealed.ProfileName(profile), sealed.Name(agent), sealed.Name(f.workflow), sealed.Delivery(f.deliver)
	for _, t := range f.tags {
		r.Tags = append(r.Tags, sealed.Name(t))
	}
	return r
}

func newProfilePreviewCmd(a *app) *cobra.Command {
	var f previewFlags
	cmd := &cobra.Command{
		Use: "preview NAME --agent AGENT", Short: "Show what a run would have", Args: cobra.ExactArgs(1),
		Long: `Preview shows each key that a run under this profile would have: the level that
defines it, the levels that narrow it, and the decision with its reasons. The
engine decides as it would for the run. No value is read, and nothing comes of it.

  sealedctl profile preview team/release --agent claude-code --workflow release`,
		ValidArgsFunction: a.complete(profileNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			p, err := e.Preview(cmd.Context(), f.requester, f.request(args[0], f.agent))
			if err != nil {
				return err
			}
			for _, warning := range p.Warnings {
				a.talk("%s", warning)
			}
			return a.print(p, func(w io.Writer) { profilePreview(w, p) })
		},
	}
	f.add(cmd, true)
	return cmd
}

func profilePreview(w io.Writer, p sealed.Preview) {
	row(w, "levels", refs(p.Profiles))
	row(w, "requester", p.Requester)
	row(w, "workflow proven", yesNo(p.WorkflowProven))
	row(w)
	row(w, "KEY", "ORIGIN", "NARROWED BY", "RISK", "DELIVERY", "HOSTS", "TTL", "DECISION", "WHY")
	for _, k := range p.Keys {
		var hosts, why []string
		for _, b := range k.Bindings {
			hosts = append(hosts, b.Host)
		}
		for _, r := range k.Decision.Reasons {
			why = append(why, r.Code)
		}
		origin, ttl := "-", "-"
		if k.Origin.Name != "" {
			origin = ref(k.Origin)
		}
		if k.TTL > 0 {
			ttl = k.TTL.Std().String()
		}
		row(w, k.Name, origin, refs(k.NarrowedBy), dash(k.Risk), dash(string(k.Delivery)), join(hosts), ttl, verdict(k.Decision), join(why))
	}
	if len(p.Knobs) > 0 {
		row(w)
		row(w, "KNOB", "VALUE", "ORIGIN")
		for _, name := range slices.Sorted(maps.Keys(p.Knobs)) {
			row(w, name, p.Knobs[name].Value, ref(p.Knobs[name].Origin))
		}
	}
	if len(p.Shadowed) > 0 {
		row(w)
		row(w, "not knobs, because a level has a key of the name:", join(p.Shadowed))
	}
}

// verdict is a decision in one word, with how many persons it asks for.
func verdict(d sealed.Decision) string {
	if d.Effect == sealed.EffectRequireApproval {
		return fmt.Sprintf("ask %d", d.Obligations.Approvals.Quorum)
	}
	return string(d.Effect)
}

func ref(r sealed.ProfileRef) string { return fmt.Sprintf("%s/%s@%d", r.Level, r.Name, r.Version) }

func refs(rs []sealed.ProfileRef) string {
	out := make([]string, 0, len(rs))
	for _, r := range rs {
		out = append(out, ref(r))
	}
	return join(out)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// A matrix is which agent may use which key.
type matrix struct {
	Profile sealed.ProfileName                            `json:"profile"`
	Agents  []string                                      `json:"agents"`
	Keys    []sealed.KeyName                              `json:"keys"`
	Cells   map[string]map[sealed.KeyName]sealed.Decision `json:"cells"` // by agent, then key
}

func newProfileMatrixCmd(a *app) *cobra.Command {
	var f previewFlags
	cmd := &cobra.Command{
		Use: "matrix NAME", Short: "Show which agent may use which key", Args: cobra.ExactArgs(1),
		Long: `Matrix makes a preview for every agent that is defined, and prints keys against
agents: allow, ask and how many persons, or deny and why.

  sealedctl profile matrix team/release --workflow release`,
		ValidArgsFunction: a.complete(profileNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			m, err := makeMatrix(cmd.Context(), e, f, args[0])
			if err != nil {
				return err
			}
			return a.print(m, func(w io.Writer) { matrixTable(w, m) })
		},
	}
	f.add(cmd, false)
	return cmd
}

func makeMatrix(ctx context.Context, e *vaultclient.Engine, f previewFlags, profile string) (matrix, error) {
	m := matrix{Profile: sealed.ProfileName(profile), Keys: []sealed.KeyName{}, Cells: map[string]map[sealed.KeyName]sealed.Decision{}}
	var err error
	if m.Agents, err = e.Agents(ctx); err != nil {
		return m, err
	}
	for _, agent := range m.Agents {
		p, err := e.Preview(ctx, f.requester, f.request(profile, agent))
		if err != nil {
			return m, fmt.Errorf("previewing %s: %w", agent, err)
		}
		m.Cells[agent] = map[sealed.KeyName]sealed.Decision{}
		for _, k := range p.Keys {
			m.Cells[agent][k.Name] = k.Decision
			if !slices.Contains(m.Keys, k.Name) {
				m.Keys = append(m.Keys, k.Name)
			}
		}
	}
	slices.Sort(m.Keys)
	return m, nil
}

func matrixTable(w io.Writer, m matrix) {
	head := []any{"KEY"}
	for _, agent := range m.Agents {
		head = append(head, agent)
	}
	row(w, head...)
	for _, name := range m.Keys {
		cells := []any{name}
		for _, agent := range m.Agents {
			d := m.Cells[agent][name]
			cell := verdict(d)
			if d.Effect == sealed.EffectDeny {
				var why []string
				for _, r := range d.Reasons {
					why = append(why, r.Code)
				}
				cell += ": " + strings.Join(why, ", ")
			}
			cells = append(cells, cell)
		}
		row(w, cells...)
	}
}
