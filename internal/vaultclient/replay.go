package vaultclient

import (
	"context"

	"sealed.dev/sealed/internal/sealed"
)

// PreviewReplay tells how a replay of a run would stand to it. It makes nothing.
func (e *Engine) PreviewReplay(ctx context.Context, id sealed.RunID, as string) (sealed.Replay, error) {
	return e.replay(ctx, id, map[string]any{"as": as, "dry_run": true})
}

// Replay enqueues a new run with the inputs of an old one, whose digests spec
// has to name. Calling it again with the same spec returns the same run. The
// answer holds the new run's ticket, which is a secret.
func (e *Engine) Replay(ctx context.Context, id sealed.RunID, as string, spec sealed.ReplaySpec) (sealed.Replay, error) {
	doc, err := encode("replay", spec)
	if err != nil {
		return sealed.Replay{}, err
	}
	return e.replay(ctx, id, map[string]any{"as": as, "spec": doc})
}

func (e *Engine) replay(ctx context.Context, id sealed.RunID, fields map[string]any) (sealed.Replay, error) {
	var out sealed.Replay
	if err := segment("run", string(id)); err != nil {
		return out, err
	}
	f, err := e.write(ctx, fields, "runs", string(id), "replay")
	if err != nil {
		return out, err
	}
	return out, f.document("replay", &out)
}

// WatchHost waits, at most a second, for an order to one of many runs. The
// answer is signed by the engine's answer key.
func (e *Engine) WatchHost(ctx context.Context, r sealed.HostWatchRequest) (sealed.Signed, error) {
	var out sealed.Signed
	doc, err := encode("watch", r)
	if err != nil {
		return out, err
	}
	f, err := e.read(ctx, map[string]string{"watch": doc}, "watch")
	if err != nil {
		return out, err
	}
	return out, f.document("answer", &out)
}
