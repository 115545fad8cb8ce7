package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// What a person says yes to is what the person saw. So an object is shown with
// every field, in the order and the text in which it is stored and digested,
// and with every character that could hide or move something written as an
// escape. What the agent wrote is introduced as such.

func newApprovalsCmd(a *app) *cobra.Command {
	return group("approvals", "See and decide what agents may not have without a person",
		`An approval is one person's single-use yes to one exact request. Read it with
show; approve names the digest of what you saw. The requester can't approve.

  sealedctl approvals list
  sealedctl approvals show 01JD0Z5X7RS3X7Q4K5M6N7P8Q9
  sealedctl approvals approve 01JD0Z5X7RS3X7Q4K5M6N7P8Q9`,
		newApprovalsListCmd(a), newApprovalsShowCmd(a), newVoteCmd(a, true), newVoteCmd(a, false))
}

func newApprovalsListCmd(a *app) *cobra.Command {
	var state string
	var all bool
	cmd := &cobra.Command{
		Use: "list", Short: "List approvals of live runs", Args: cobra.NoArgs,
		Long: `List shows what waits for a person; --all shows decided ones of live runs too.

  sealedctl approvals list`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			if all {
				state = ""
			}
			list, err := e.Approvals(cmd.Context(), state)
			if err != nil {
				return err
			}
			return a.print(list, func(w io.Writer) {
				row(w, "ID", "STATE", "KEY", "RISK", "AGENT", "REQUESTER", "VOTES", "EXPIRES")
				for _, x := range list {
					row(w, x.ID, x.State, x.Key, x.Risk, x.Agent, x.Requester, fmt.Sprintf("%d/%d", x.Votes, x.Quorum), stamp(x.ExpiresAt))
				}
			})
		},
	}
	cmd.Flags().StringVar(&state, "state", sealed.ApprovalPending, "only approvals in this state")
	cmd.Flags().BoolVar(&all, "all", false, "in any state")
	return cmd
}

func newApprovalsShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show exactly what is asked for", Args: cobra.ExactArgs(1),
		Long: `Show prints every field of the object exactly as it is stored, and its digest,
which was compared with the object. With -o json it prints the engine's own bytes.

  sealedctl approvals show 01JD0Z5X7RS3X7Q4K5M6N7P8Q9`,
		ValidArgsFunction: a.complete(approvalIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			v, err := e.Approval(cmd.Context(), sealed.ApprovalID(args[0]))
			if err != nil {
				return err
			}
			if a.output == "json" {
				_, err := fmt.Fprintln(a.stdout, v.Raw)
				return err
			}
			var shown error
			return errors.Join(a.print(v.ApprovalView, func(w io.Writer) { shown = showApproval(w, v) }), shown)
		},
	}
}

// showApproval writes the object, then what has happened to it.
func showApproval(w io.Writer, v vaultclient.Approval) error {
	fields, err := objectFields(v.Object)
	if err != nil {
		return err
	}
	for _, f := range fields {
		name := f.name
		if name == "reason" {
			name = "the agent says:"
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\n", escaped(name), f.text)
	}
	_, _ = fmt.Fprintf(w, "\n")
	row(w, "digest", v.Digest)
	row(w, "state", v.State)
	for _, vote := range v.Votes {
		word := "no"
		if vote.Yes {
			word = "yes"
		}
		row(w, "vote", word+", "+vote.Name+" ("+vote.Person+"), "+stamp(vote.At))
	}
	return nil
}

// A shownField is a member of an object: its name, and its JSON text.
type shownField struct{ name, text string }

// objectFields returns the members of a JSON object in their order. A list of
// objects is given as one field for each element.
func objectFields(object []byte) ([]shownField, error) {
	dec := json.NewDecoder(bytes.NewReader(object))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("reading approval: not an object: %w", sealed.ErrInvalid)
	}
	var out []shownField
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("reading approval: malformed: %w", sealed.ErrInvalid)
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, fmt.Errorf("reading approval: malformed: %w", sealed.ErrInvalid)
		}
		var list []json.RawMessage
		if json.Unmarshal(raw, &list) == nil && len(list) > 0 && bytes.HasPrefix(list[0], []byte("{")) {
			for i, item := range list {
				out = append(out, shownField{fmt.Sprintf("%v[%d]", name, i), escaped(string(item))})
			}
			continue
		}
		out = append(out, shownField{fmt.Sprint(name), escaped(string(raw))})
	}
	return out, nil
}

// escaped writes every character that is not plainly visible as a JSON escape:
// control, zero-width, bidirectional and private ones, and odd spaces.
func escaped(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == ' ' || strconv.IsPrint(r):
			b.WriteRune(r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// newVoteCmd makes approve and deny.
func newVoteCmd(a *app, yes bool) *cobra.Command {
	var sure bool
	var digest string
	cmd := &cobra.Command{
		Use: "approve ID [--yes --digest D]", Short: "Say yes to what show prints", Args: cobra.ExactArgs(1),
		Long: `Approve shows the object, asks, and sends exactly the digest of what it showed.
Without a terminal it wants --yes and the --digest of the object that was read.

  sealedctl approvals approve 01JD0Z5X7RS3X7Q4K5M6N7P8Q9`,
	}
	if !yes {
		cmd.Use, cmd.Short = "deny ID [--yes --digest D]", "Say no, which is final"
		cmd.Long = `Deny shows the object, asks, and says no. One no is final. Without a terminal it
wants --yes.

  sealedctl approvals deny 01JD0Z5X7RS3X7Q4K5M6N7P8Q9`
	}
	cmd.ValidArgsFunction = a.complete(approvalIDs)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case sure && yes && digest == "":
			return usagef("--yes wants --digest: the digest of the object that you read")
		case !sure && !isTerminal(a.stdin):
			return usagef("there is no terminal to ask on: give --yes and --digest")
		}
		return a.vote(cmd.Context(), sealed.ApprovalID(args[0]), sealed.Digest(digest), yes, sure)
	}
	cmd.Flags().BoolVarP(&sure, "yes", "y", false, "don't ask")
	cmd.Flags().StringVar(&digest, "digest", "", "digest of the object that was read; another one is refused")
	return cmd
}

func (a *app) vote(ctx context.Context, id sealed.ApprovalID, digest sealed.Digest, yes, sure bool) error {
	e, err := a.engine(ctx)
	if err != nil {
		return err
	}
	v, err := e.Approval(ctx, id)
	if err != nil {
		return err
	}
	if digest != "" && digest != v.Digest {
		return &hintError{err: fmt.Errorf("voting: the object has another digest: %w", sealed.ErrConflict), hint: "sealedctl approvals show " + string(id)}
	}
	if !sure {
		var shown error
		if err := errors.Join(aligned(a.stderr, func(w io.Writer) { shown = showApproval(w, v) }), shown); err != nil {
			return err // a person is never asked about what was not shown
		}
		question := "approve exactly this?"
		if !yes {
			question = "deny this, for good?"
		}
		if err := a.confirm(question); err != nil {
			return err
		}
	}
	act := e.Deny
	if yes {
		act = e.Approve
	}
	after, err := act(ctx, id, v.Digest)
	if err != nil {
		return voteError(ctx, e, v, err)
	}
	return a.print(after.ApprovalView, func(w io.Writer) {
		row(w, id, after.State, fmt.Sprintf("%d of %d", yeses(after.Votes), after.Decoded.Quorum))
	})
}

func yeses(votes []sealed.Vote) (n int) {
	for _, v := range votes {
		if v.Yes {
			n++
		}
	}
	return n
}

func approvalIDs(ctx context.Context, e *vaultclient.Engine) ([]string, error) {
	list, err := e.Approvals(ctx, sealed.ApprovalPending)
	var out []string
	for _, x := range list {
		out = append(out, string(x.ID)+"\t"+string(x.Key)+" for "+string(x.Agent))
	}
	return out, err
}
