// Package rego holds the default policies of Sealed.
//
// The idea: what may be used, by whom, and what a person must say yes to is
// written in Rego, shipped as source, and tested beside the source. The engine
// never loads these files directly. opabundle.Build makes a bundle of them, a
// person signs it, and the engine accepts the signed bundle only.
//
// sealed/authz answers sealed.authz.decision over sealed.Input: deny by
// default, with one constant code per reason. sealed/approval answers
// sealed.approval.decision over sealed.ApprovalInput: may this person vote on
// this approval. sealed/dispatch and sealed/directive answer whether a worker
// may start a run, and what is to happen to a running run that raised signals;
// a bundle may lack them. Input schemas lie in schema/, for opa check --schema; with
// them decision.json, the schema of what all four answer.
//
// Facts are rules of their own, each with a reason for when it is missing. A
// policy that is asked often may state the usual case once more, in one linear
// rule that is tried first (_usual in sealed/authz): it must allow nothing that
// the complete rules do not, and a test must compare the two. Rules that
// read few fields of the input cost less: what no rule of a bundle reads is not
// given to it, and keys that differ in nothing else are decided once.
//
// examples/ holds overlays, each a bundle of its own with its tests, for
// sealedctl policy overlay upload: production-hours and break-glass. starter/ is what sealedctl policy
// init puts beside the policies: a README and requests to try them with.
//
// The policies decide over facts that the engine has established. They do not
// establish any: a wrong fact gives a wrong decision.
package rego

import (
	"embed"
	"io/fs"
)

//go:embed sealed schema
var files embed.FS

//go:embed examples
var examples embed.FS

//go:embed starter
var starter embed.FS

// FS returns the policies (sealed/**/*.rego), their tests (*_test.rego) and
// the JSON Schemas of their inputs and of a decision (schema/*.json). It is read-only and safe
// for concurrent use.
func FS() fs.FS { return files }

// Examples returns the overlays (examples/<name>/…). It is read-only and safe for
// concurrent use.
func Examples() fs.FS { return examples }

// Starter returns starter/. It is read-only and safe for concurrent use.
func Starter() fs.FS { return starter }
