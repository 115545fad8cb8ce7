// Package source holds what the kinds of source share: the credential they
// yield, and a client for another Vault's HTTP API that is bounded in time and
// size and says nothing about what it read.
//
// # Guarantee
//
// One call is one request: 3 s, no redirect, no retry, no proxy, at most 1 MiB
// of answer, TLS 1.2 or newer with the pinned CA when one is given. Errors hold
// the method, the step and the status, never a body, a header or a field's
// value. Nothing is read from the environment.
//
// # What it does not guarantee
//
// The upstream Vault is trusted for what it returns. The bytes of an answer are
// wiped after use as far as Go allows: TLS buffers are not in our hands.
package source

import (
	"time"

	"sealed.dev/sealed/internal/secret"
)

// A Minted credential. Handle is enough to revoke it and is not secret.
type Minted struct {
	Value  *secret.Value
	Handle string
	TTL    time.Duration // 0: the source sets no limit
}
