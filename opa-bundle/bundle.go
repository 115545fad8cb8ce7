// Package opabundle builds, signs, verifies and evaluates the policy bundles
// of Sealed.
//
// A bundle is an ordinary OPA bundle, so an enterprise signs and inspects it
// with the stock opa command. The idea is that everything that could make a
// bundle mean two things is refused before OPA sees it, and that every way in
// which a policy can fail to answer is a denial with a fixed reason.
//
// # Guarantee
//
// A *Bundle exists only if its files carry one valid ES256 signature by a
// configured key, its policies compile strictly against an allow-list of
// built-in functions without network, clock or randomness, and both questions
// of package sealed are answered by a rule. Decide then depends on its
// arguments only: same bundle, question, input and time, same decision. The
// code of every reason is a word of the bundle, so that no text of an input
// becomes one.
//
// # Cost
//
// A decision is one evaluation in process. Its input holds the fields that
// some rule the question can reach reads, so that a policy pays for what it asks; it
// holds one key and its profile, so the number of profiles does not matter.
// DecideAll decides keys that differ in nothing that is read but once.
//
// # What it does not guarantee
//
// A signature says nothing about age. The engine compares Ref().Sequence with
// its stored floor. Decide denies after Expires, but time is the caller's. The
// signer is trusted to mean what the policy says: a signed policy that allows
// everything allows everything. A single call of a built-in function is not
// interrupted, so the time limit of Decide is checked between calls.
//
// # Format
//
// A gzip-compressed tar with these regular files and nothing else:
//
//	.manifest          {"revision", "roots":["sealed"], "rego_version":1,
//	                    "metadata":{"sequence": N ≥ 1, "expires": RFC 3339,
//	                    "overlay": true, if it is one}}
//	.signatures.json   {"signatures":[one JWT]}, header {"alg":"ES256","kid":ID}
//	**/*.rego          policies of packages below sealed
//	**/data.json       data below sealed
//
// The JWT lists every other file with its hash, as opa sign does; see
// https://www.openpolicyagent.org/docs/management-bundles#signing.
package opabundle

import (
	"errors"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// Questions that a bundle may answer beside those of package sealed. One that
// has no rule for them denies with sealed.ReasonUndefined.
const (
	QuestionDispatch  = "sealed.dispatch.decision"  // may this worker start this run?
	QuestionDirective = "sealed.directive.decision" // what is to happen to this running run?
)

// Why a bundle was refused. Every error of Open wraps one of them or is the
// context's.
var (
	// ErrUnsigned means that the bundle carries no signature.
	ErrUnsigned = errors.New("bundle is not signed")
	// ErrSignature means that the signature is not by a configured key, is of
	// another kind than ES256, or does not cover exactly the files present.
	ErrSignature = errors.New("bundle signature is not valid")
	// ErrMalformed means that archive, manifest or policies are not what the
	// format asks for.
	ErrMalformed = errors.New("bundle is malformed")
	// ErrCapability means that a policy names a built-in function that is not
	// on the allow-list.
	ErrCapability = errors.New("bundle uses a forbidden built-in function")
)

// Options say which bundles to accept. Keys is required: without a key every
// bundle is refused.
type Options struct {
	// Keys maps a key id to a PEM public key ("PUBLIC KEY", ECDSA P-256).
	Keys   map[string]string
	Limits Limits
}

// Limits bound the work that a bundle may cause. Each zero field means the
// default.
type Limits struct {
	Compressed   int64         // bytes of the bundle; default 1 MiB
	Uncompressed int64         // bytes of all files; default 8 MiB
	Files        int           // default 512
	Input        int           // bytes of an input document; default 1 MiB
	Eval         time.Duration // of one evaluation; default 250 ms
}

func (l Limits) withDefaults() Limits {
	return Limits{
		Compressed:   orDefault(l.Compressed, 1<<20),
		Uncompressed: orDefault(l.Uncompressed, 8<<20),
		Files:        orDefault(l.Files, 512),
		Input:        orDefault(l.Input, 1<<20),
		Eval:         orDefault(l.Eval, 250*time.Millisecond),
	}
}

func orDefault[T int | int64 | time.Duration](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

// A Bundle is a verified, compiled policy bundle. It is immutable and safe
// for concurrent use. A nil *Bundle denies everything with
// sealed.ReasonNoBundle.
type Bundle struct {
	ref      sealed.BundleRef
	revision string
	expires  time.Time
	overlay  bool
	limits   Limits
	queries  map[string]*query // by question
}

// Ref returns the plain SHA-256 of the bundle's bytes and its sequence.
func (b *Bundle) Ref() sealed.BundleRef { return b.ref }

// Revision returns the free text that the signer gave the bundle.
func (b *Bundle) Revision() string { return b.revision }

// Expires returns the moment from which Decide denies.
func (b *Bundle) Expires() time.Time { return b.expires }

// IsOverlay reports whether the signer made it to be laid over another bundle.
// Decide does not care; whoever lets a bundle decide alone has to.
func (b *Bundle) IsOverlay() bool { return b.overlay }
