package opabundle

import (
	"path"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Terms that every input holds. They are never changed and are shared by all
// evaluations; they only save allocations.

var nullTerm = ast.NullTerm()

// fieldTerms are the names of the fields.
var fieldTerms = func() (terms [fieldCount]*ast.Term) {
	for f, at := range fieldPath {
		terms[f] = ast.StringTerm(path.Base(strings.ReplaceAll(at, ".", "/")))
	}
	return terms
}()

var (
	requesterTerm = ast.StringTerm("requester")
	agentTerm     = ast.StringTerm("agent")
	runTerm       = ast.StringTerm("run")
	profileTerm   = ast.StringTerm("profile")
	keyTerm       = ast.StringTerm("key")
)

// commonTerms are names below the fields, and values that most inputs hold.
var commonTerms = func() map[string]*ast.Term {
	terms := map[string]*ast.Term{}
	for _, s := range []string{
		"name", "proven", "host", "methods", "paths", "header", "format",
		"time", "tenant", "voter", "approval", "votes", "person", "entity_id", "groups", "claims", "yes", "at",
		"", "*", "enqueue", "issue", "request", "bare", "sandboxed", "identity", "jit",
		"local", "docker", "own_uid", "same_uid", "container", "pod", "attested", "launcher",
		"none", "allowlist", "full", "system", "workflow", "user", "static", "dynamic",
		"low", "high", "critical", "proxy", "env", "GET", "POST", "Authorization", "Bearer {}",
	} {
		terms[s] = ast.StringTerm(s)
	}
	return terms
}()
