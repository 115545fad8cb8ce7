package vaultplugin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"reflect"
	"strconv"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// pathHostWatch is how a host hears, in one call, of orders to all runs whose
// sandboxes it owns. It needs no word of the runs: operators call it, who may read
// every run, and sealed-init for the runs beside its own. Init learns of a run
// whose id it was told, which has 80 random bits, whether it goes on, and if not
// why: the state or the id of a revocation, nothing of its keys or of its people.
// The call is not a sign of life of any run; that is init's own.
func (b *backend) pathHostWatch() []*framework.Path {
	return []*framework.Path{{
		Pattern:      "watch$",
		DisplayAttrs: display("host-watch"),
		Fields: map[string]*framework.FieldSchema{
			"watch": {Type: framework.TypeString, Query: true, Description: "One JSON document: runs (ids, at most 128), epoch and state (of the last answer), and wait (a duration, at most 1s)."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: b.op("Wait for orders to the runs of a host", b.watchHost),
		},
		HelpSynopsis:    "Wait, at most one second, for news of one of many runs or for the epoch to rise.",
		HelpDescription: "The signed answer names every run asked for: those that go on, each with a mark that changes when there is news for it, and those that have to stop, with the reason. A run that is over or unknown has to stop.",
	}}
}

func (b *backend) watchHost(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	if err := b.mayWatchHost(ctx, req); err != nil {
		return nil, err
	}
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
		if last || isNews(hr, a) {
			return b.answer(ctx, req.Storage, a)
		}
		switch waitAny(changed, timeout.C, release, ctx.Done()) {
		case woken:
		case released, timedOut: // what changed without waking anybody is told, too
			last = true
		default:
			return nil, ctx.Err()
		}
	}
}

// isNews reports whether the caller does not know the answer yet. One that hands
// back the state of its last answer knows the orders in it: they stand until
// the sandbox is gone.
func isNews(hr sealed.HostWatchRequest, a sealed.HostWatchAnswer) bool {
	if hr.State == "" {
		return len(a.Orders) > 0 || a.Epoch > hr.Epoch
	}
	return a.State != hr.State || a.Epoch > hr.Epoch
}

// mayWatchHost refuses an agent of another tenant, whose token may have the same
// policy. About everybody else Vault's policies have decided. Whom it let through
// is remembered for as long as knownAgent remembers an agent; a no never is.
func (b *backend) mayWatchHost(ctx context.Context, req *logical.Request) error {
	asked, who := b.now(), "watch "+req.EntityID // beside the entity's own place
	cfg, err := b.config(ctx, req.Storage)
	if err != nil || req.EntityID == "" {
		return err
	}
	if _, ok := b.mem.agent(who, cfg, asked); ok {
		return nil
	}
	e, err := b.entity(req)
	if err != nil {
		return err
	}
	if aliasAt(e, cfg.AgentAccessor) != nil {
		if _, err = b.knownAgent(ctx, req); err != nil {
			if unlessDenied(err) == nil {
				return errRefused
			}
			return err
		}
	}
	b.mem.knowAgent(who, cfg, asked, "")
	return nil
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

// hostOrders says of each run whether it goes on. A run that is not in the
// index is over or was never there: storage is not asked, so that ids that
// somebody made up cost nothing.
func (b *backend) hostOrders(ctx context.Context, s logical.Storage, runs []sealed.RunID) (sealed.HostWatchAnswer, error) {
	a := sealed.HostWatchAnswer{Continue: []sealed.HostRun{}, Orders: []sealed.HostOrder{}, Time: b.now().UTC()}
	// Time and epoch first: what comes in between is then reported as older than
	// it is, and the next call answers at once.
	var err error
	if a.Epoch, err = b.epoch(ctx, s); err != nil {
		return a, err
	}
	x, err := b.index(ctx, s)
	if err != nil {
		return a, err
	}
	var state []byte
	for _, id := range runs {
		o := sealed.WatchAnswer{Order: sealed.OrderAbort, Reason: "not known"}
		if r, known := x.run(id); known {
			if o, r, _, err = b.order(ctx, s, id); errors.Is(err, sealed.ErrNotFound) {
				o = sealed.WatchAnswer{Order: sealed.OrderAbort, Reason: "not known"} // archived a moment ago
			} else if err != nil {
				return a, err
			}
			if o.Reason == sealed.RunEnqueued && r.State == sealed.RunEnqueued {
				o.Order = sealed.OrderContinue
			}
		}
		if o.Order == sealed.OrderContinue {
			a.Continue = append(a.Continue, sealed.HostRun{Run: id, Mark: o.Mark})
		} else {
			a.Orders = append(a.Orders, sealed.HostOrder{Run: id, Order: o.Order, Reason: o.Reason})
		}
		state = appendFields(state, string(id), o.Order, o.Reason, o.Mark)
	}
	sum := sha256.Sum256(state)
	a.State = hex.EncodeToString(sum[:16])
	return a, nil
}

// markOf stands for what a run is told by its own watch. Whoever hears another
// mark second hand calls, and then has this one. The epoch is not in it: it is
// told beside.
func markOf(a sealed.WatchAnswer) string {
	b := appendFields(nil, a.Order, a.Reason, strconv.FormatInt(int64(a.Every), 10))
	for _, g := range a.Dead {
		b = appendFields(b, string(g))
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// appendFields appends texts so that others give other bytes: none of them holds
// a NUL.
func appendFields(b []byte, fields ...string) []byte {
	for _, f := range fields {
		b = append(append(b, f...), 0)
	}
	return b
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
