package opabundle

import (
	"fmt"

	"github.com/open-policy-agent/opa/v1/ast"

	"sealed.dev/sealed/internal/sealed"
)

// The two inputs of package sealed, field by field in the order of their Go
// types. A field with omitempty is left out when it is zero.

func authzValue(in *sealed.Input, limit int) (ast.Value, error) {
	t := &terms{left: limit}
	fields := [][2]*ast.Term{
		field("phase", t.str(in.Phase)),
		field("time", t.time(in.Time)),
		field("tenant", t.str(string(in.Tenant))),
		field("requester", t.requester(in.Requester)),
		field("agent", t.agent(in.Agent)),
		field("run", t.run(in.Run)),
		field("profile", t.profile(in.Profile)),
		field("key", t.key(in.Key)),
	}
	if in.Reason != "" {
		fields = append(fields, field("reason", t.str(in.Reason)))
	}
	return ast.NewObject(fields...), t.err
}

func (t *terms) requester(r sealed.Requester) *ast.Term {
	return ast.ObjectTerm(
		field("entity_id", t.str(r.EntityID)),
		field("name", t.str(r.Name)),
		field("person", t.str(r.Person)),
		field("groups", t.strs(r.Groups)),
		field("claims", t.strMap(r.Claims)),
	)
}

func (t *terms) agent(a sealed.InputAgent) *ast.Term {
	fields := [][2]*ast.Term{
		field("name", t.str(string(a.Name))),
		field("definition_digest", t.str(string(a.DefinitionDigest))),
	}
	if a.SPIFFEID != "" {
		fields = append(fields, field("spiffe_id", t.str(a.SPIFFEID)))
	}
	return ast.ObjectTerm(fields...)
}

func (t *terms) run(r sealed.InputRun) *ast.Term {
	tag := func(x sealed.InputTag) *ast.Term {
		return ast.ObjectTerm(field("name", t.str(x.Name)), field("proven", ast.BooleanTerm(x.Proven)))
	}
	return ast.ObjectTerm(
		field("id", t.str(string(r.ID))),
		field("mode", t.str(r.Mode)),
		field("workflow", t.str(r.Workflow)),
		field("workflow_proven", ast.BooleanTerm(r.WorkflowProven)),
		field("tags", list(t, r.Tags, tag)),
		field("backend", t.str(r.Backend)),
		field("isolation", t.str(r.Isolation)),
		field("assurance", t.str(r.Assurance)),
		field("network", t.str(r.Network)),
		field("interactive", ast.BooleanTerm(r.Interactive)),
	)
}

func (t *terms) profile(p sealed.InputProfile) *ast.Term {
	return ast.ObjectTerm(
		field("name", t.str(string(p.Name))),
		field("level", t.str(p.Level)),
		field("version", t.num(int64(p.Version))),
		field("owner", t.str(p.Owner)),
		field("tags", t.strs(p.Tags)),
		field("allowed_workflows", t.strs(p.AllowedWorkflows)),
	)
}

func (t *terms) key(k sealed.InputKey) *ast.Term {
	binding := func(b sealed.Binding) *ast.Term {
		return ast.ObjectTerm(
			field("host", t.str(b.Host)),
			field("methods", t.strs(b.Methods)),
			field("paths", t.strs(b.Paths)),
			field("header", t.str(b.Header)),
			field("format", t.str(b.Format)),
		)
	}
	return ast.ObjectTerm(
		field("name", t.str(string(k.Name))),
		field("source", t.str(string(k.Source))),
		field("source_kind", t.str(k.SourceKind)),
		field("agents", t.strs(k.Agents)),
		field("workflows", t.strs(k.Workflows)),
		field("tags", t.strs(k.Tags)),
		field("risk", t.str(k.Risk)),
		field("delivery", t.str(string(k.Delivery))),
		field("bindings", list(t, k.Bindings, binding)),
		field("ttl", t.num(k.TTL)),
		field("max_ttl", t.num(k.MaxTTL)),
		field("requester_matches", ast.BooleanTerm(k.RequesterMatches)),
	)
}

func approvalValue(in *sealed.ApprovalInput, limit int) (ast.Value, error) {
	t := &terms{left: limit}
	object := ast.NullTerm()
	if in.Approval != nil {
		v, err := jsonValue(in.Approval, limit)
		if err != nil {
			return nil, fmt.Errorf("encoding approval: %w", err)
		}
		t.take(len(in.Approval))
		object = ast.NewTerm(v)
	}
	vote := func(v sealed.Vote) *ast.Term {
		fields := [][2]*ast.Term{
			field("person", t.str(v.Person)),
			field("entity_id", t.str(v.EntityID)),
			field("name", t.str(v.Name)),
			field("yes", ast.BooleanTerm(v.Yes)),
			field("at", t.time(v.At)),
		}
		if len(v.Groups) > 0 {
			fields = append(fields, field("groups", t.strs(v.Groups)))
		}
		return ast.ObjectTerm(fields...)
	}
	v := ast.NewObject(
		field("time", t.time(in.Time)),
		field("tenant", t.str(string(in.Tenant))),
		field("voter", t.requester(in.Voter)),
		field("approval", object),
		field("votes", list(t, in.Votes, vote)),
	)
	return v, t.err
}
