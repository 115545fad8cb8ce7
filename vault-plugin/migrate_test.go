package vaultplugin

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
)

func storedVersion(t *testing.T, w *world) (row versionRow, ok bool) {
	t.Helper()
	ok, err := get(t.Context(), w.s, storeVersion, &row)
	if err != nil {
		t.Fatal(err)
	}
	return row, ok
}

// TestStorageVersion: a mount from before there was a version goes on as it was.
func TestStorageVersion(t *testing.T) {
	if n := len(migrations()); n != storageVersion {
		t.Fatalf("%d steps lead to version %d", n, storageVersion)
	}
	w := newWorld(t)
	if row, ok := storedVersion(t, w); !ok || row.Version != storageVersion {
		t.Fatalf("the first configuration wrote %+v, %v", row, ok)
	}
	g := w.claimed(idem(1))
	if err := w.s.Delete(t.Context(), storeVersion); err != nil {
		t.Fatal(err)
	}
	w.open()
	if _, _, err := g.creds("LOW", idem(2)); err != nil {
		t.Fatalf("a run of version 0: %v", err)
	}
	if row, _ := storedVersion(t, w); row.Version != storageVersion {
		t.Errorf("storage still has version %d", row.Version)
	}
	before := w.s.count()
	if _, err := w.do("op", "", logical.ReadOperation, "config", nil); err != nil || w.s.count() != before {
		t.Errorf("a second request migrated again: %v", err)
	}
}

// TestStorageNewer: what a newer program wrote is neither read nor written, by
// no request and not by the worker.
func TestStorageNewer(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	a, resp, err := g.creds("LOW", idem(2))
	if err == nil {
		err = g.confirm(a)
	}
	if err != nil {
		t.Fatal(err)
	}
	resp.Secret.IssueTime = w.clock.now()
	tests := []struct {
		name  string
		value string
		code  int
	}{
		{"newer", `{"version":4}`, 503},
		{"much newer", `{"version":99,"more":"x"}`, 503},
		{"malformed", `{"version":"2"}`, 503},
		{"negative", `{"version":-1}`, 500},
		{"this one", `{"version":3}`, 0}, // the control
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := w.s.Put(t.Context(), &logical.StorageEntry{Key: storeVersion, Value: []byte(tt.value)}); err != nil {
				t.Fatal(err)
			}
			w.open()
			before := w.s.count()
			_, rerr := w.do("op", "", logical.ReadOperation, "config", nil)
			_, _, cerr := g.creds("LOW", idem(3))
			lease := &logical.Request{Operation: logical.RenewOperation, Path: g.path("creds/LOW"), Secret: resp.Secret, Storage: w.s}
			_, lerr := w.b.HandleRequest(t.Context(), lease)
			for what, err := range map[string]error{"read": rerr, "creds": cerr} {
				if code(err) != tt.code {
					t.Errorf("%s: %v, want %d", what, err, tt.code)
				}
			}
			if (lerr == nil) != (tt.code == 0) {
				t.Errorf("renewing %s: %v", a.Grant, lerr)
			}
			if tt.code == 0 {
				return
			}
			if tt.name == "newer" && !strings.Contains(rerr.Error(), "version 4") {
				t.Errorf("the error does not say which version: %v", rerr)
			}
			if err := w.b.layout.ready(t.Context(), w.b, w.s); err == nil {
				t.Error("the worker would go on")
			}
			if n := w.s.count(); n != before {
				t.Errorf("%d writes", n-before)
			}
			if _, err := w.b.HandleRequest(t.Context(), &logical.Request{Operation: logical.HelpOperation, Path: "config", Storage: w.s}); err != nil {
				t.Errorf("help: %v", err)
			}
		})
	}
}

// TestMigrate: steps come in order, each once, and one that was interrupted comes
// again.
func TestMigrate(t *testing.T) {
	var ran []int
	broken := errors.New("interrupted")
	fail := true
	steps := []migration{
		func(context.Context, logical.Storage) error { ran = append(ran, 0); return nil },
		func(context.Context, logical.Storage) error {
			ran = append(ran, 1)
			if fail {
				return broken
			}
			return nil
		},
		func(context.Context, logical.Storage) error { ran = append(ran, 2); return nil },
	}
	w := &world{s: &faultStorage{}}
	if err := migrate(t.Context(), w.s, 0, steps); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	row, _ := storedVersion(t, w)
	if row.Version != 1 {
		t.Fatalf("after the interruption storage has version %d", row.Version)
	}
	fail = false
	if err := migrate(t.Context(), w.s, row.Version, steps); err != nil {
		t.Fatal(err)
	}
	if row, _ = storedVersion(t, w); row.Version != 3 {
		t.Errorf("storage has version %d", row.Version)
	}
	if diff := cmp.Diff([]int{0, 1, 1, 2}, ran); diff != "" {
		t.Error(diff)
	}
}

// readOnly is a node that may not write.
type readOnly struct{ *fakeSystem }

func (readOnly) ReplicationState() consts.ReplicationState {
	return consts.ReplicationPerformanceStandby
}

// TestStandbyMigratesNothing: it waits for the node that may write.
func TestStandbyMigratesNothing(t *testing.T) {
	w := newWorld(t)
	if err := w.s.Delete(t.Context(), storeVersion); err != nil {
		t.Fatal(err)
	}
	active := w.b
	w.open()
	standby := w.b
	if err := standby.Backend.Setup(t.Context(), &logical.BackendConfig{StorageView: w.s, System: readOnly{w.sys}, Logger: standby.Logger()}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.do("op", "", logical.ReadOperation, "config", nil); err != logical.ErrReadOnly {
		t.Fatalf("%v; Vault would not forward the request", err)
	}
	if _, ok := storedVersion(t, w); ok {
		t.Fatal("a node that may not write wrote")
	}
	active.layout.drop()
	w.b = active
	if _, err := w.do("op", "", logical.ReadOperation, "config", nil); err != nil {
		t.Fatal(err)
	}
	w.b = standby
	standby.invalidate(t.Context(), storeVersion)
	if err := standby.layout.ready(t.Context(), standby, w.s); err != nil {
		t.Errorf("after the migration: %v", err)
	}
}
