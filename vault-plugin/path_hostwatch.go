package vaultplugin

import (
	"context"
	"errors"
	"reflect"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// pathHostWatch is how a host hears, in one call, of orders to all runs whose
// sandboxes it owns. It needs no word of the runs: whoever may call it may read
// every run, and learns no more than runs/<id> shows. It is not a sign of life
// of any run; that is init's own call.
func (b *backend) pathHostWatch() []*framework.Path {
	return []*framework.Path{{
		Pattern:      "watch$",
		DisplayAttrs: display("host-watch"),
		Fields: map[string]*framework.FieldSchema{
			"watch": {Type: framework.TypeString, Description: "One JSON document: runs (ids, at most 256), epoch, and wait (a duration, at most 1s)."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.op("Wait for orders to the runs of a host", b.watchHost),
		},
		HelpSynopsis:    "Wait, at most one second, for an order to one of many runs or for the epoch to rise.",
		HelpDescription: "The signed answer names every run asked for: those that go on, and those that have to stop, with the reason. A run that is over or unknown has to stop.",
	}}
}

func (b *backend) watchHost(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	hr, err := sealed.ParseHostWatchRequest([]byte(text(d, "watch")))
	if err != nil {
		return nil, err
	}
	timeout := time.NewTimer(min(hr.Wait.Std(), maxWatch))
	defer timeout.Stop()
	release := b.watches.next()
	for last := false; ; {
		changed := b.hostChanges(ctx, req.Storage, hr.Runs)
		a, err := b.hostOrders(ctx, req.Storage, hr.Runs)
		if err != nil {
			return nil, err
		}
		if last || len(a.Orders) > 0 || a.Epoch > hr.Epoch {
			return b.answer(ctx, req.Storage, a)
		}
		switch waitAny(changed, timeout.C, release, ctx.Done()) {
		case woken:
		case released:
			last = true
		case timedOut:
			return b.answer(ctx, req.Storage, a)
		default:
			return nil, ctx.Err()
		}
	}
}

// hostChanges are the channels of which one is closed at the next change of
// the epoch or of one of the runs. Take them before the state is read.
func (b *backend) hostChanges(ctx context.Context, s logical.Storage, runs []sealed.RunID) []<-chan struct{} {
	out := []<-chan struct{}{b.epochChanged()}
	x, err := b.index(ctx, s)
	if err != nil {
		return out // orders will fail with the same error
	}
	for _, id := range runs {
		if c := x.changed(id); c != nil {
			out = append(out, c)
		}
	}
	return out
}

func (b *backend) hostOrders(ctx context.Context, s logical.Storage, runs []sealed.RunID) (sealed.HostWatchAnswer, error) {
	a := sealed.HostWatchAnswer{Continue: []sealed.RunID{}, Orders: []sealed.HostOrder{}, Time: b.now().UTC()}
	// Time and epoch first: what comes in between is then reported as older than
	// it is, and the next call answers at once.
	var err error
	if a.Epoch, err = b.epoch(ctx, s); err != nil {
		return a, err
	}
	for _, id := range runs {
		o, r, _, err := b.order(ctx, s, id)
		if errors.Is(err, sealed.ErrNotFound) {
			o, err = sealed.WatchAnswer{Order: sealed.OrderAbort, Reason: "not known"}, nil
		}
		if err != nil {
			return a, err
		}
		if o.Order == sealed.OrderContinue || o.Reason == sealed.RunEnqueued && r.State == sealed.RunEnqueued {
			a.Continue = append(a.Continue, id)
		} else {
			a.Orders = append(a.Orders, sealed.HostOrder{Run: id, Order: o.Order, Reason: o.Reason})
		}
	}
	return a, nil
}

// What ended a wait.
const (
	woken = iota
	timedOut
	released
	gone // the caller
)

// waitAny waits for the first of many channels.
func waitAny(changed []<-chan struct{}, timeout <-chan time.Time, release, caller <-chan struct{}) int {
	cases := []reflect.SelectCase{
		timedOut - 1: {Dir: reflect.SelectRecv, Chan: reflect.ValueOf(timeout)},
		released - 1: {Dir: reflect.SelectRecv, Chan: reflect.ValueOf(release)},
		gone - 1:     {Dir: reflect.SelectRecv, Chan: reflect.ValueOf(caller)},
	}
	for _, c := range changed {
		cases = append(cases, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(c)})
	}
	if chosen, _, _ := reflect.Select(cases); chosen < gone {
		return chosen + 1
	}
	return woken
}
