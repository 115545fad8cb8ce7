package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// What a second person confirms is what the person saw: every field that would
// change is shown with its old and its new text, and what widens is marked. The
// confirmation names the digest of the object that was shown, never of one that
// was read after that.

// longText is how much of a value a table shows; the rest is in -o json.
const longText = 4000

func newProposalsCmd(a *app) *cobra.Command {
	return group("proposals", "See and decide changes that wait for a second person",
		`A change that widens who may reach what (a key, a binding, a source's address, a
CA, a policy key) is a proposal until another person confirms it. Who may change a
thing may confirm it, except the one who proposed it. What narrows needs nobody.

  sealedctl proposals list
  sealedctl proposals show 01JD0Z5X7RS3X7Q4K5M6N7P8Q9
  sealedctl proposals confirm 01JD0Z5X7RS3X7Q4K5M6N7P8Q9`,
		newProposalsListCmd(a), newProposalsShowCmd(a), newProposalsConfirmCmd(a), newProposalsRejectCmd(a))
}

// printProposed is the data of a change that has become a proposal.
func (a *app) printProposed(p sealed.Proposed) error {
	return a.print(p, func(w io.Writer) {
		row(w, "proposal", p.ID)
		row(w, "kind", p.Kind)
		row(w, "widens", join(p.Widens))
		row(w, "expires", stamp(p.Expires))
		row(w, "digest", p.Digest)
	})
}

func newProposalsListCmd(a *app) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use: "list", Short: "List what waits for a second person", Args: cobra.NoArgs,
		Long: `List shows the proposals that your token may see: of profiles, sources, policy
keys, trust or configuration.

  sealedctl proposals list --kind profile`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if kind != "" && !slices.Contains(sealed.ProposalKinds, kind) {
				return usagef("--kind wants one of %s", join(sealed.ProposalKinds))
			}
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			list, err := listProposals(cmd.Context(), e, kind)
			if err != nil {
				return err
			}
			return a.print(list, func(w io.Writer) {
				row(w, "ID", "KIND", "TARGET", "WIDENS", "PROPOSER", "EXPIRES")
				for _, p := range list {
					target := dash(p.Target)
					if p.Delete {
						target += " (ends)"
					}
					row(w, p.ID, p.Kind, target, p.Widens, p.Proposer, stamp(p.ExpiresAt))
				}
			})
		},
	}
	cmd.Flags().StringVar(&kind, "kind", "", strings.Join(sealed.ProposalKinds, ", ")+" (default: all)")
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(sealed.ProposalKinds, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// listProposals asks for each kind that the token may see; none is an error.
func listProposals(ctx context.Context, e *vaultclient.Engine, kind string) ([]vaultclient.ProposalSummary, error) {
	kinds := sealed.ProposalKinds
	if kind != "" {
		kinds = []string{kind}
	}
	out := []vaultclient.ProposalSummary{}
	var denied error
	seen := false
	for _, kind := range kinds {
		list, err := e.Proposals(ctx, kind)
		if errors.Is(err, sealed.ErrDenied) {
			denied = err
			continue
		}
		if err != nil {
			return nil, err
		}
		seen = true
		out = append(out, list...)
	}
	if !seen {
		return nil, denied
	}
	return out, nil
}

func newProposalsShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show exactly what would change", Args: cobra.ExactArgs(1),
		Long: `Show prints each field that would change, with its text now and then; "!" marks
what widens. With -o json it prints the engine's own bytes, whole.

  sealedctl proposals show 01JD0Z5X7RS3X7Q4K5M6N7P8Q9`,
		ValidArgsFunction: a.complete(proposalIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			p, err := e.Proposal(cmd.Context(), "", sealed.ProposalID(args[0]))
			if err != nil {
				return err
			}
			if a.output == "json" {
				_, err := fmt.Fprintln(a.stdout, p.Raw)
				return err
			}
			var shown error
			return errors.Join(a.print(p.ProposalView, func(w io.Writer) { shown = showProposal(w, p) }), shown)
		},
	}
}

// showProposal writes what would change, and then about whom and when.
func showProposal(w io.Writer, p vaultclient.Proposal) error {
	o := p.Decoded
	lines, err := proposalLines(p)
	if err != nil {
		return err
	}
	what := "change " + o.Kind
	if o.Target != "" {
		what += " " + o.Target
	}
	switch {
	case o.Delete:
		what = "end " + o.Kind + " " + o.Target
	case p.Before == "":
		what = "make " + o.Kind + " " + o.Target
	}
	row(w, what)
	row(w)
	row(w, "", "FIELD", "NOW", "THEN")
	for _, l := range lines {
		mark := ""
		if l.widens {
			mark = "!"
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", mark, escaped(l.Field), shortText(l.Before), shortText(l.After))
	}
	row(w)
	for _, f := range [][2]any{
		{"widens", join(o.Widens)}, {"proposed by", o.Proposer + " (" + o.Person + ")"}, {"at", stamp(o.CreatedAt)},
		{"expires", stamp(o.ExpiresAt)}, {"state", p.State}, {"digest", p.Digest},
	} {
		row(w, f[0], f[1])
	}
	return nil
}

// A proposalLine is a field that differs.
type proposalLine struct {
	fieldDiff
	widens bool
}

// proposalLines compares the texts field by field. What widens and is no field of
// the text, such as an authority within a bundle, has a line of its own.
func proposalLines(p vaultclient.Proposal) ([]proposalLine, error) {
	before, err := textFields(p.Before)
	if err != nil {
		return nil, err
	}
	after, err := textFields(p.Decoded.Content)
	if err != nil {
		return nil, err
	}
	all := maps.Clone(before)
	maps.Copy(all, after)
	said := map[string]bool{}
	var out []proposalLine
	for _, field := range slices.Sorted(maps.Keys(all)) {
		if before[field] == after[field] || field == "version" {
			continue
		}
		l := proposalLine{fieldDiff: fieldDiff{Field: field, Before: before[field], After: after[field]}}
		for _, wide := range p.Decoded.Widens {
			if rest, below := strings.CutPrefix(field, wide); below && (rest == "" || rest[0] == '.' || rest[0] == '[') {
				l.widens, said[wide] = true, true
			}
		}
		out = append(out, l)
	}
	for _, wide := range p.Decoded.Widens {
		if !said[wide] {
			then := "(default)" // nothing is said, and that lets more happen
			if strings.HasPrefix(wide, "bundle.") {
				then = "(added)"
			}
			out = append(out, proposalLine{fieldDiff{Field: wide, After: then}, true})
		}
	}
	return out, nil
}

// textFields are the fields of a JSON text by path; of none there are none.
func textFields(text string) (map[string]string, error) {
	out := map[string]string{}
	if text == "" {
		return out, nil
	}
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		return nil, fmt.Errorf("reading proposal: %w", sealed.ErrInvalid)
	}
	flatten(out, "", v)
	return out, nil
}

// shortText is a value for a table, with everything visible that is in it.
func shortText(s string) string {
	if len(s) > longText {
		return fmt.Sprintf("(%d bytes, whole in -o json) %s…", len(s), escaped(s[:64]))
	}
	return dash(escaped(s))
}

func newProposalsConfirmCmd(a *app) *cobra.Command {
	var sure bool
	var digest string
	cmd := &cobra.Command{
		Use: "confirm ID [--yes --digest D]", Short: "Let a change take effect that another person proposed", Args: cobra.ExactArgs(1),
		Long: `Confirm shows what would change, asks, and sends exactly the digest of what it
showed. Without a terminal it wants --yes and the --digest of what was read. If what
it replaces has changed meanwhile, nothing happens.

  sealedctl proposals confirm 01JD0Z5X7RS3X7Q4K5M6N7P8Q9`,
		ValidArgsFunction: a.complete(proposalIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case sure && digest == "":
				return usagef("--yes wants --digest: the digest of what you read")
			case !sure && !isTerminal(a.stdin):
				return usagef("there is no terminal to ask on: give --yes and --digest")
			}
			return a.confirmProposal(cmd.Context(), sealed.ProposalID(args[0]), sealed.Digest(digest), sure)
		},
	}
	cmd.Flags().BoolVarP(&sure, "yes", "y", false, "don't ask")
	cmd.Flags().StringVar(&digest, "digest", "", "digest of what was read; another one is refused")
	return cmd
}

func (a *app) confirmProposal(ctx context.Context, id sealed.ProposalID, digest sealed.Digest, sure bool) error {
	e, err := a.engine(ctx)
	if err != nil {
		return err
	}
	p, err := e.Proposal(ctx, "", id)
	if err != nil {
		return err
	}
	if digest != "" && digest != p.Digest {
		return &hintError{err: fmt.Errorf("confirming: it has another digest: %w", sealed.ErrConflict), hint: "sealedctl proposals show " + string(id)}
	}
	if !sure {
		var shown error
		if err := errors.Join(aligned(a.stderr, func(w io.Writer) { shown = showProposal(w, p) }), shown); err != nil {
			return err // a person is never asked about what was not shown
		}
		if err := a.confirm("confirm exactly this?"); err != nil {
			return err
		}
	}
	version, err := e.ConfirmProposal(ctx, p.Decoded.Kind, id, p.Digest)
	if err != nil {
		return inWords(err, "confirming", confirmWords, refusalWord(err, "confirming"), string(id))
	}
	out := confirmed{Proposal: id, Kind: p.Decoded.Kind, Target: p.Decoded.Target, Version: version}
	return a.print(out, func(w io.Writer) {
		row(w, id, "confirmed", out.Kind, dash(out.Target))
	})
}

// confirmed is what a confirmation has changed.
type confirmed struct {
	Proposal sealed.ProposalID `json:"proposal"`
	Kind     string            `json:"kind"`
	Target   string            `json:"target,omitempty"`
	Version  int               `json:"version,omitempty"`
}

// confirmWords says in a sentence why a confirmation did not count; the engine
// says it in a word. The second text is the next thing to try.
var confirmWords = map[string][2]string{
	"self":           {"you proposed this yourself: another person has to confirm it", ""},
	"person_unknown": {"Vault does not know which person you are", "ask who runs Vault to set the person's claim of your entity"},
	"proposer":       {"who proposed it is gone, or is another person by now", "have it proposed again"},
	"stale":          {"what it would replace has changed since", "have it proposed again"},
	"digest":         {"it has another digest", "sealedctl proposals show "},
	"expired":        {"its time is over", "have it proposed again"},
}

func newProposalsRejectCmd(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "reject ID", Short: "Drop a proposal, or withdraw your own", Args: cobra.ExactArgs(1),
		Long: `Reject deletes a proposal. Nothing was changed by it, and the same change can be
proposed again. Without a terminal it wants --yes.

  sealedctl proposals reject 01JD0Z5X7RS3X7Q4K5M6N7P8Q9`,
		ValidArgsFunction: a.complete(proposalIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			id := sealed.ProposalID(args[0])
			p, err := e.Proposal(cmd.Context(), "", id)
			if err != nil {
				return err
			}
			if err := a.sure("reject the proposal to change "+p.Decoded.Kind+" "+p.Decoded.Target+"?", yes); err != nil {
				return err
			}
			if err := e.RejectProposal(cmd.Context(), p.Decoded.Kind, id); err != nil {
				return err
			}
			a.talk("rejected proposal %s", id)
			return nil
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "don't ask")
	return cmd
}

func proposalIDs(ctx context.Context, e *vaultclient.Engine) ([]string, error) {
	list, err := listProposals(ctx, e, "")
	var out []string
	for _, p := range list {
		out = append(out, string(p.ID)+"\t"+p.Kind+" "+p.Target)
	}
	return out, err
}
