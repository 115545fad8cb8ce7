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
// this approval. Input schemas lie in schema/, for opa check --schema.
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

// FS returns the policies (sealed/**/*.rego), their tests (*_test.rego) and
// the JSON Schemas of their inputs (schema/*.json). It is read-only and safe
// for concurrent use.
func FS() fs.FS { return files }
