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

// pathEvents is where init reports what happened in the sandbox.
func (b *backend) pathEvents() []*framework.Path {
	return []*framework.Path{{
		Pattern:      runPattern + "/events$",
		DisplayAttrs: display("events"),
		Fields:       requestField(),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.op("Report events of the sandbox", b.reportEvents),
		},
		HelpSynopsis:    "Report names and counts for the log; at most 100 at a time.",
		HelpDescription: "Only the types that a run may say about itself are taken. When the run's entries in the log are used up the answer is 429 and nothing of the call is logged.",
	}}
}

func (b *backend) reportEvents(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	var er sealed.EventsRequest
	r, err := b.openRunCall(ctx, req, d, untilOver, &er, func() (sealed.RunID, string) { return er.Run, er.Path })
	if err != nil {
		return nil, err
	}
	if len(er.Events) == 0 || len(er.Events) > maxEvents {
		return nil, invalid("events", "wants 1 to 100 events")
	}
	events := make([]audit.Event, 0, len(er.Events))
	for _, e := range er.Events {
		if err := checkEvent(r, e); err != nil {
			return nil, err
		}
		body := map[string]any{"count": e.Count, "said_by": "run"}
		for name, v := range map[string]string{"key": string(e.Key), "detail": sealed.CleanReason(e.Detail), "stream": e.Stream} {
			if v != "" {
				body[name] = v
			}
		}
		events = append(events, audit.Event{Type: e.Type, Run: string(r.ID), Body: body})
	}
	if _, err := b.record(ctx, req.Storage, events...); err != nil {
		if errors.Is(err, audit.ErrBudget) {
			return nil, errBudget
		}
		return nil, err
	}
	return map[string]any{"accepted": len(events)}, nil
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
