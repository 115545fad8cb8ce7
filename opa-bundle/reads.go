package opabundle

import (
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// A field is one member of sealed.Input, or of an object in it, that is given
// to a policy or left out as a whole.
type field uint8

const (
	fPhase field = iota
	fTime
	fTenant
	fRequesterEntityID
	fRequesterName
	fRequesterPerson
	fRequesterGroups
	fRequesterClaims
	fAgentName
	fAgentDefinitionDigest
	fAgentSPIFFEID
	fRunID
	fRunMode
	fRunWorkflow
	fRunWorkflowProven
	fRunTags
	fRunBackend
	fRunIsolation
	fRunAssurance
	fRunNetwork
	fRunInteractive
	fProfileName
	fProfileLevel
	fProfileVersion
	fProfileOwner
	fProfileTags
	fProfileAllowedWorkflows
	fKeyName
	fKeySource
	fKeySourceKind
	fKeyAgents
	fKeyWorkflows
	fKeyTags
	fKeyRisk
	fKeyDelivery
	fKeyBindings
	fKeyTTL
	fKeyMaxTTL
	fKeyRequesterMatches
	fReason
	fieldCount
)

// fieldPath says where in the document a field lies.
var fieldPath = [fieldCount]string{
	fPhase:                   "phase",
	fTime:                    "time",
	fTenant:                  "tenant",
	fRequesterEntityID:       "requester.entity_id",
	fRequesterName:           "requester.name",
	fRequesterPerson:         "requester.person",
	fRequesterGroups:         "requester.groups",
	fRequesterClaims:         "requester.claims",
	fAgentName:               "agent.name",
	fAgentDefinitionDigest:   "agent.definition_digest",
	fAgentSPIFFEID:           "agent.spiffe_id",
	fRunID:                   "run.id",
	fRunMode:                 "run.mode",
	fRunWorkflow:             "run.workflow",
	fRunWorkflowProven:       "run.workflow_proven",
	fRunTags:                 "run.tags",
	fRunBackend:              "run.backend",
	fRunIsolation:            "run.isolation",
	fRunAssurance:            "run.assurance",
	fRunNetwork:              "run.network",
	fRunInteractive:          "run.interactive",
	fProfileName:             "profile.name",
	fProfileLevel:            "profile.level",
	fProfileVersion:          "profile.version",
	fProfileOwner:            "profile.owner",
	fProfileTags:             "profile.tags",
	fProfileAllowedWorkflows: "profile.allowed_workflows",
	fKeyName:                 "key.name",
	fKeySource:               "key.source",
	fKeySourceKind:           "key.source_kind",
	fKeyAgents:               "key.agents",
	fKeyWorkflows:            "key.workflows",
	fKeyTags:                 "key.tags",
	fKeyRisk:                 "key.risk",
	fKeyDelivery:             "key.delivery",
	fKeyBindings:             "key.bindings",
	fKeyTTL:                  "key.ttl",
	fKeyMaxTTL:               "key.max_ttl",
	fKeyRequesterMatches:     "key.requester_matches",
	fReason:                  "reason",
}

// A fieldSet says which fields are meant.
type fieldSet uint64

const (
	noFields  fieldSet = 0
	allFields fieldSet = 1<<fieldCount - 1
)

func (s fieldSet) has(f field) bool { return s&(1<<f) != 0 }

// inputReads returns every field of sealed.Input that a policy could read when
// it is asked for the document at ref.
//
// It looks at all references of all rules in all packages that the question
// can reach, whatever they depend on. A constant
// reference below input reads that field; one that goes on with a variable, or
// stops early, reads everything below where it stops; input by itself, in any
// place, reads everything. A rule can learn of its input in no other way, so
// an input without the other fields gives the same answer.
func inputReads(compiler *ast.Compiler, ref ast.Ref) fieldSet {
	var reads fieldSet
	var visit func(*ast.Term) bool
	visit = func(t *ast.Term) bool {
		switch v := t.Value.(type) {
		case ast.Var:
			if v.Equal(ast.InputRootDocument.Value) {
				reads = allFields
			}
		case ast.Ref:
			if !v.HasPrefix(ast.InputRootRef) {
				return false
			}
			reads |= fieldsAt(v[1:])
			for _, operand := range v[1:] { // input.key[input.run.mode]
				ast.WalkTerms(operand, visit)
			}
			return true
		}
		return false
	}
	for _, m := range reached(compiler, ref) {
		ast.WalkTerms(m, visit)
	}
	return reads
}

// reached returns the modules whose rules a reference can have a part in: those
// of its package, of packages above and below it, and so on for every reference
// of these modules. A reference counts up to its first variable; data by itself
// reaches everything.
func reached(compiler *ast.Compiler, ref ast.Ref) []*ast.Module {
	var out []*ast.Module
	seen := map[*ast.Module]bool{}
	var follow func(ast.Ref)
	var visit func(*ast.Term) bool
	visit = func(t *ast.Term) bool {
		switch v := t.Value.(type) {
		case ast.Var:
			if v.Equal(ast.DefaultRootDocument.Value) {
				follow(ast.DefaultRootRef)
			}
		case ast.Ref:
			if !v.HasPrefix(ast.DefaultRootRef) {
				return false
			}
			follow(v)
			for _, operand := range v[1:] {
				ast.WalkTerms(operand, visit)
			}
			return true
		}
		return false
	}
	follow = func(ref ast.Ref) {
		ref = ref.ConstantPrefix()
		for _, m := range compiler.Modules {
			if path := m.Package.Path; !seen[m] && (ref.HasPrefix(path) || path.HasPrefix(ref)) {
				seen[m] = true
				out = append(out, m)
				for _, rule := range m.Rules {
					ast.WalkTerms(rule, visit)
				}
			}
		}
	}
	follow(ref)
	return out
}

// fieldsAt returns the fields that a path below input reaches.
func fieldsAt(path []*ast.Term) fieldSet {
	var names []string
	for _, t := range path {
		s, ok := t.Value.(ast.String)
		if !ok {
			break
		}
		names = append(names, string(s))
	}
	var set fieldSet
	for f, at := range fieldPath {
		parts := strings.Split(at, ".")
		if n := min(len(parts), len(names)); slices.Equal(parts[:n], names[:n]) {
			set |= 1 << f
		}
	}
	return set
}
