// Package vaultplugin is the Sealed secrets engine for Vault: the one
// authority over runs, grants, approvals, revocations and their log.
//
// One mount is one tenant. State lives in Vault storage only, so the process
// can be killed at any instruction; what is kept in memory is a cache that
// Invalidate drops. Nothing is shared between mounts of one process but the
// immutable dependencies in Deps.
//
// # Guarantee
//
// A credential value exists in this process only inside the call that issues
// it, and leaves it only as HPKE ciphertext for the key of the run that asked.
// No grant is issued without a durable intent, a log entry, a decision at
// issue, and a revocation epoch that did not move in a way that concerns it.
//
// # What it does not guarantee
//
// Whoever holds Vault root, sys/raw, or the plugin catalogue is outside this
// wall. A static value that was used once can't be un-known by revoking it.
package vaultplugin

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

// Version is the running version that Vault shows for the plugin.
const Version = "v0.1.0"

// A Bundle is an opened, verified policy bundle. It is immutable and safe for
// concurrent use.
type Bundle interface {
	Ref() sealed.BundleRef
	Expires() time.Time
	// IsOverlay reports whether its signer made it to be laid over another bundle:
	// it must not decide alone, and only such a one may be an overlay.
	IsOverlay() bool
	// Decide answers a question about input at a time. It never fails open:
	// whatever goes wrong is a deny with a fixed reason.
	Decide(ctx context.Context, question string, input any, at time.Time) sealed.Decision
}

// A Use is one key under the profile that defines it.
type Use struct {
	Profile sealed.InputProfile
	Key     sealed.InputKey
}

// A BatchBundle is a Bundle that decides all keys of a run faster than one by
// one.
type BatchBundle interface {
	Bundle
	// DecideAll gives the answers of Decide to sealed.QuestionAuthz for shared
	// with each use, in their order.
	DecideAll(ctx context.Context, shared sealed.Input, uses []Use, at time.Time) []sealed.Decision
}

// A Minted credential comes from a source. Handle is enough to revoke it and
// is not secret.
type Minted struct {
	Value  *secret.Value
	Handle string
	TTL    time.Duration // 0: the source sets no limit
	Max    time.Duration // what renewing can reach, since the mint; 0: it can't be renewed
	// Version is the version at a source that tells one.
	Version sealed.SourceVersion
}

// A Source yields values. Implementations bound every upstream call to 3 s
// and never retry a create.
type Source interface {
	// Prepare returns a handle that is persisted before Mint, so that what
	// Mint creates can be found and revoked after a crash. Static sources
	// return "".
	Prepare(ctx context.Context, ref sealed.KeyRef) (handle string, err error)
	// Mint reads or creates the value under a prepared handle.
	Mint(ctx context.Context, ref sealed.KeyRef, handle string) (Minted, error)
	// Revoke undoes Mint. It is idempotent; "not there" is success.
	Revoke(ctx context.Context, handle string) error
	// Check tells whether the source can be used, without reading a value.
	Check(ctx context.Context) error
	// Revocable reports whether Revoke un-issues the value upstream.
	Revocable() bool
}

// A Renewer is a Source whose credentials may be renewed: Minted.Max says
// which. Renew returns how long the credential lasts from now on.
type Renewer interface {
	Renew(ctx context.Context, handle string) (time.Duration, error)
}

// A Keeper is a Source with a login that has to be renewed. Keep is called
// about every 20 s and makes a call when one is due.
type Keeper interface {
	Keep(ctx context.Context) error
}

// Deps are what the engine needs from its main. The zero Clock and Rand mean
// the real ones.
type Deps struct {
	// OpenBundle verifies and compiles a bundle against PEM public keys by key id.
	OpenBundle func(ctx context.Context, raw []byte, keys map[string]string) (Bundle, error)
	// OpenSource makes a source of a type other than builtin. credential is
	// the source's own login and is owned by the callee.
	OpenSource func(cfg sealed.SourceConfig, credential *secret.Value) (Source, error)
	// OpenHelped does the same for a type that lives in a helper process. nil:
	// there are no helpers.
	OpenHelped func(cfg sealed.SourceConfig, helper sealed.SourceHelper, credential *secret.Value) (Source, error)
	Clock      func() time.Time
	Rand       io.Reader
}

// backend is one mount. All fields below the line are caches of storage.
type backend struct {
	*framework.Backend
	deps Deps
	now  func() time.Time
	rand io.Reader
	log  hclog.Logger

	// storage is the mount's view, kept for the worker and the log.
	storage logical.Storage

	locks  lockTable // by name: run/<id>, approval/<id>, profile/<level>/<name>, …
	worker *worker

	// Caches of the nouns; each guards itself.
	nouns   nounCaches
	journal journal
	policy  policyState
	asked   proposals
	stops   revocationState
	chores  housekeeping
	watches release // calls that wait
	restore rollbackState
	layout  layout // of storage

	mem   runMemory // of runs: what a restart may forget (memory.go)
	ended endedRuns // what lists show of runs that are over

	mu   sync.Mutex // guards everything below; never held across storage of others or upstream I/O
	live *grantIndex
}

// Factory returns a logical.Factory over deps, for plugin.ServeMultiplex.
func Factory(deps Deps) logical.Factory {
	return func(ctx context.Context, conf *logical.BackendConfig) (logical.Backend, error) {
		b, err := newBackend(deps)
		if err != nil {
			return nil, err
		}
		b.storage = conf.StorageView
		if err := b.Setup(ctx, conf); err != nil {
			return nil, err
		}
		b.log = b.Logger()
		return b, nil
	}
}

func newBackend(deps Deps) (*backend, error) {
	if deps.OpenBundle == nil || deps.OpenSource == nil {
		return nil, errors.New("making backend: OpenBundle and OpenSource are required")
	}
	b := &backend{deps: deps, now: deps.Clock, rand: deps.Rand}
	if b.now == nil {
		b.now = time.Now
	}
	if b.rand == nil {
		b.rand = rand.Reader
	}
	b.nouns.effective.most = maxEffective
	b.worker = newWorker(b)
	b.Backend = &framework.Backend{
		BackendType:    logical.TypeLogical,
		RunningVersion: Version,
		Help:           help,
		Paths:          b.paths(),
		Secrets:        []*framework.Secret{b.grantSecret()},
		InitializeFunc: b.initialize,
		Invalidate:     b.invalidate,
		Clean:          b.clean,
		PathsSpecial: &logical.Paths{
			SealWrapStorage: []string{storeKeys, storeSecrets + "*", storeSourceCreds + "*"},
		},
	}
	return b, nil
}

// Setup implements logical.Backend.
func (b *backend) Setup(ctx context.Context, conf *logical.BackendConfig) error {
	mine := *conf
	if conf.System != nil {
		mine.System = &steadyView{SystemView: conf.System, now: b.now}
	}
	return b.Backend.Setup(ctx, &mine)
}

func (b *backend) paths() []*framework.Path {
	return b.described(framework.PathAppend(
		b.pathCreds(), b.pathConfirm(), b.pathWatch(), // first: the framework tries one after the other
		b.pathConfig(), b.pathTrustBundle(), b.pathPolicy(),
		b.pathSources(), b.pathSecrets(), b.pathAgents(), b.pathProfiles(),
		b.pathRollback(), b.pathLog(), b.pathRevocations(),
		b.pathRuns(), b.pathReplay(), b.pathHostWatch(), b.pathClaim(), b.pathRequests(), b.pathEvents(), b.pathFinish(), b.pathApprovals(), b.pathReviews(), b.pathProposals(),
	))
}

// initialize starts the worker. It reads no storage of others and calls
// nobody: it runs inside Vault's unseal.
func (b *backend) initialize(_ context.Context, req *logical.InitializationRequest) error {
	b.storage = req.Storage
	if b.WriteSafeReplicationState() {
		b.worker.start()
	}
	return nil
}

func (b *backend) clean(context.Context) {
	b.watches.all()
	b.worker.stop()
}

const help = `
Sealed issues credentials to attested agent runs: gated by policy and people,
sealed to the run's own key, leased, and logged. Start at config, then
policy, sources, agents and profiles; runs/ is what sealedctl and sealed-init use.
`
