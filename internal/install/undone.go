package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// After the mount is gone nobody can revoke a credential at its source. The engine
// does it in the background and logs it, so the log tells what is still owed:
// intents of sources that can take back, without a lease.revoked of the same grant.

const (
	undoneLimit = 30 * time.Second
	undonePoll  = 250 * time.Millisecond
)

func (t target) undone() step {
	s := step{name: "undone", what: "credentials revoked at their sources"}
	s.look = func(ctx context.Context) (found, error) {
		n, err := t.owed(ctx)
		if err != nil {
			return found{}, err
		}
		if n == 0 {
			return gone()
		}
		return different(fmt.Sprintf("%d are not; after the mount is gone nobody can do it", n))
	}
	s.apply = func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, undoneLimit)
		defer cancel()
		for {
			if n, err := t.owed(ctx); err != nil || n == 0 {
				return err
			}
			select {
			case <-ctx.Done():
				return errors.New("a source does not answer; mend it, or revoke there by hand and skip this step")
			case <-time.After(undonePoll):
			}
		}
	}
	return s
}

// owed counts grants that the log says were begun and not undone. An erased entry
// says nothing; runs that old have ended.
func (t target) owed(ctx context.Context) (int, error) {
	cfg, err := t.configured(ctx)
	if err != nil || cfg == nil {
		return 0, err
	}
	dynamic, err := t.dynamicSources(ctx)
	if err != nil || len(dynamic) == 0 {
		return 0, err
	}
	open := map[string]bool{}
	err = t.eachEntry(ctx, "issue.intent", func(grant, source string) {
		if dynamic[source] {
			open[grant] = true
		}
	})
	if err == nil {
		err = t.eachEntry(ctx, "lease.revoked", func(grant, _ string) { delete(open, grant) })
	}
	return len(open), err
}

func (t target) dynamicSources(ctx context.Context) (map[string]bool, error) {
	names, err := t.engine().Sources(ctx)
	if err != nil && !errors.Is(err, sealed.ErrNotFound) {
		return nil, err
	}
	out := map[string]bool{}
	for _, name := range names {
		s, err := t.engine().Source(ctx, sealed.Name(name))
		if err != nil {
			return nil, err
		}
		if s.Type == sealed.SourceVaultDynamic {
			out[name] = true
		}
	}
	return out, nil
}

func (t target) eachEntry(ctx context.Context, kind string, f func(grant, source string)) error {
	filter := vaultclient.LogFilter{Type: kind, Limit: 1000}
	for {
		entries, next, err := t.engine().LogEntries(ctx, filter)
		if err != nil {
			return err
		}
		for _, e := range entries {
			var body struct {
				Grant  string `json:"grant"`
				Source string `json:"source"`
			}
			if json.Unmarshal(e.Body, &body) == nil && body.Grant != "" {
				f(body.Grant, body.Source)
			}
		}
		if next <= filter.From {
			return nil
		}
		filter.From = next
	}
}
