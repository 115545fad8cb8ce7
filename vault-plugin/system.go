package vaultplugin

import (
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
)

// steadyFor is how long Vault's answer about the mount is taken for that of now.
const steadyFor = 10 * time.Second

// A steadyView remembers what Vault says about the mount, which the framework
// asks before each call and which changes with a configuration or a change of
// role: each question is a call back into Vault. Everything else, identity
// above all, is asked anew.
//
// Old answers widen nothing. Vault refuses the writes of a node that may not
// write, so that a call which should have been forwarded fails; and it cuts
// every lease and every renewal to the mount's limit of the moment.
type steadyView struct {
	logical.SystemView
	now func() time.Time

	mu          sync.Mutex
	local       kept[bool]
	replication kept[consts.ReplicationState]
	longest     kept[time.Duration]
}

// kept is an answer and when it was asked for.
type kept[T any] struct {
	at    time.Time
	value T
}

// LocalMount implements logical.SystemView.
func (v *steadyView) LocalMount() bool { return steady(v, &v.local, v.SystemView.LocalMount) }

// ReplicationState implements logical.SystemView.
func (v *steadyView) ReplicationState() consts.ReplicationState {
	return steady(v, &v.replication, v.SystemView.ReplicationState)
}

// MaxLeaseTTL implements logical.SystemView.
func (v *steadyView) MaxLeaseTTL() time.Duration {
	return steady(v, &v.longest, v.SystemView.MaxLeaseTTL)
}

// steady returns what is kept, or asks. No lock is held while it asks.
func steady[T any](v *steadyView, k *kept[T], ask func() T) T {
	now := v.now()
	v.mu.Lock()
	known := *k
	v.mu.Unlock()
	if age := now.Sub(known.at); !known.at.IsZero() && age >= 0 && age < steadyFor {
		return known.value
	}
	known = kept[T]{now, ask()}
	v.mu.Lock()
	defer v.mu.Unlock()
	*k = known
	return known.value
}
