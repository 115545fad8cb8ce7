package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

func newReviewsCmd(a *app) *cobra.Command {
	return group("reviews", "See and close the reviews that uses of credentials owe",
		`A policy can oblige to a review afterwards, as of a broken glass. Somebody of the
groups that the policy names closes it with a finding; never the one who used the
credential, nor those who agreed to it. Whoever owes an overdue review gets nothing
more that would owe another.

  sealedctl reviews list
  sealedctl reviews show 01JD0Z5X7RS3X7Q4K5M6N7P8Q9
  sealedctl reviews close 01JD0Z5X7RS3X7Q4K5M6N7P8Q9 --finding justified --note "outage 4711"`,
		newReviewsListCmd(a), newReviewsShowCmd(a), newReviewsCloseCmd(a))
}

func newReviewsListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the open reviews, oldest first", Args: cobra.NoArgs,
		Long: `List shows what waits for a review. Closed ones are in the log:
sealedctl audit query --type review.closed

  sealedctl reviews list`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			list, err := e.Reviews(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(list, func(w io.Writer) {
				row(w, "ID", "KEY", "AGENT", "REQUESTER", "REASONS", "DUE", "STATE")
				for _, v := range list {
					state := "open"
					if v.Overdue {
						state = "overdue"
					}
					row(w, v.ID, v.Key, v.Agent, v.Requester, join(v.Reasons), stamp(v.DueAt), state)
				}
			})
		},
	}
}

func newReviewsShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show whose use of what has to be reviewed, and who agreed to it", Args: cobra.ExactArgs(1),
		Long: `Show prints an open review. What the run did is in its record:
sealedctl runs show RUN, sealedctl audit query --run RUN

  sealedctl reviews show 01JD0Z5X7RS3X7Q4K5M6N7P8Q9`,
		ValidArgsFunction: a.complete(reviewIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			v, err := e.Review(cmd.Context(), sealed.GrantID(args[0]))
			if err != nil {
				return err
			}
			return a.print(v, func(w io.Writer) {
				for _, f := range [][2]any{
					{"review", v.ID}, {"run", v.Run}, {"key", v.Key}, {"profile", v.Profile}, {"agent", v.Agent}, {"workflow", dash(string(v.Workflow))},
					{"requester", v.Requester + " (" + v.Person + ")"}, {"reasons", join(v.Reasons)},
				} {
					row(w, f[0], f[1])
				}
				for _, x := range v.Votes {
					if x.Yes {
						row(w, "agreed", x.Name+" ("+x.Person+")")
					}
				}
				row(w, "groups", join(v.Groups))
				row(w, "opened", stamp(v.OpenedAt))
				row(w, "due", stamp(v.DueAt))
			})
		},
	}
}

func newReviewsCloseCmd(a *app) *cobra.Command {
	var finding, note string
	cmd := &cobra.Command{
		Use: "close ID --finding justified|unjustified --note TEXT", Short: "Close a review with a finding", Args: cobra.ExactArgs(1),
		Long: `Close puts the finding and the note into the log, with your name. An unjustified
use stops nothing by itself: see sealedctl revoke.

  sealedctl reviews close 01JD0Z5X7RS3X7Q4K5M6N7P8Q9 --finding justified --note "outage 4711"`,
		ValidArgsFunction: a.complete(reviewIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case finding != sealed.FindingJustified && finding != sealed.FindingUnjustified:
				return usagef("--finding wants %s or %s", sealed.FindingJustified, sealed.FindingUnjustified)
			case sealed.CleanReason(note) == "":
				return usagef("--note wants a text: why")
			}
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			id := sealed.GrantID(args[0])
			if err := e.CloseReview(cmd.Context(), id, finding, note); err != nil {
				return inWords(err, "reviewing", reviewWords, refusalWord(err, "reviewing"), string(id))
			}
			return a.print(map[string]string{"review": string(id), "finding": finding}, func(w io.Writer) { row(w, id, "closed", finding) })
		},
	}
	cmd.Flags().StringVar(&finding, "finding", "", "justified or unjustified")
	cmd.Flags().StringVar(&note, "note", "", "why; it goes to the log")
	_ = cmd.RegisterFlagCompletionFunc("finding", cobra.FixedCompletions([]string{sealed.FindingJustified, sealed.FindingUnjustified}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// reviewWords says in a sentence why a review was not closed; the engine says it
// in a word.
var reviewWords = map[string][2]string{
	"self":           {"it was your use: another person has to review it", ""},
	"approver":       {"you agreed to the use: another person has to review it", ""},
	"person_unknown": {"Vault does not know which person you are", ""},
	"group":          {"you are in none of the groups that may review it", ""},
}

func reviewIDs(ctx context.Context, e *vaultclient.Engine) ([]string, error) {
	list, err := e.Reviews(ctx)
	var out []string
	for _, v := range list {
		out = append(out, string(v.ID)+"\t"+string(v.Key)+" "+v.Requester)
	}
	return out, err
}
