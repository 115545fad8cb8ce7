package vaultplugin

import (
	"context"
	"errors"
	"slices"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

const (
	maxEvents = 100
	maxDetail = 128 // bytes
)

// pathEvents is where init reports what happened in the sandbox, and hands in
// the redacted command and input of the run.
func (b *backend) pathEvents() []*framework.Path {
	return []*framework.Path{b.pathInput(), {
		Pattern:      runPattern + "/events$",
		DisplayAttrs: display("events"),
		Fields:       requestField(),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.op("Report events of the sandbox", b.reportEvents),
		},
		HelpSynopsis:    "Report names and counts for the log; at most 100 at a time.",
		HelpDescription: "Only the types that a run may say about itself are taken. Once, before the agent starts, the redacted command and input may come along; runs/<id> shows them. When the run's entries in the log are used up the answer is 429 and nothing of the call is logged.",
	}}
}

func (b *backend) reportEvents(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	var er sealed.EventsRequest
	r, err := b.openRunCall(ctx, req, d, untilOver, &er, func() (sealed.RunID, string) { return er.Run, er.Path })
	if err != nil {
		return nil, err
	}
	if len(er.Events) == 0 && er.Input == "" || len(er.Events) > maxEvents {
		return nil, invalid("events", "wants 1 to 100 events")
	}
	for _, e := range er.Events {
		if err := checkEvent(r, e); err != nil {
			return nil, err
		}
	}
	if er.Input != "" {
		if err := b.saveInput(ctx, req.Storage, r.ID, er.Input); err != nil {
			return nil, err
		}
	}
	if err := b.logEvents(ctx, req.Storage, r.ID, er.Events); err != nil {
		return nil, err
	}
	return map[string]any{"accepted": len(er.Events)}, nil
}

// logEvents appends what a run says about itself, and says that it is so.
func (b *backend) logEvents(ctx context.Context, s logical.Storage, id sealed.RunID, said []sealed.RunEvent) error {
	events := make([]audit.Event, 0, len(said))
	for _, e := range said {
		body := map[string]any{"count": e.Count, "said_by": "run"}
		for name, v := range map[string]string{"key": string(e.Key), "detail": sealed.CleanReason(e.Detail), "stream": e.Stream} {
			if v != "" {
				body[name] = v
			}
		}
		events = append(events, audit.Event{Type: e.Type, Run: string(id), Body: body})
	}
	if len(events) == 0 {
		return nil
	}
	_, err := b.record(ctx, s, events...)
	if errors.Is(err, audit.ErrBudget) {
		return errBudget
	}
	return err
}

// checkEvent refuses what a run may not say: the agent may have got at init's
// words, so types are closed, keys are those of the run, and text is short.
func checkEvent(r runRow, e sealed.RunEvent) error {
	if !slices.Contains(sealed.RunEvents, e.Type) {
		return invalid("events.type", "is not for a run to report")
	}
	if e.Count < 1 || e.Count > 1<<30 {
		return invalid("events.count", "wants a positive count")
	}
	if _, ok := r.key(e.Key); e.Key != "" && !ok {
		return invalid("events.key", "is not a key of the run")
	}
	if len(e.Detail) > maxDetail {
		return invalid("events.detail", "longer than 128 bytes")
	}
	if e.Stream != "" {
		if _, err := sealed.ParseName("events.stream", e.Stream); err != nil {
			return err
		}
	}
	return nil
}
