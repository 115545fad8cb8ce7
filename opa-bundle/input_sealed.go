package opabundle

import (
	"fmt"

	"github.com/open-policy-agent/opa/v1/ast"

	"sealed.dev/sealed/internal/sealed"
)

// The two inputs of package sealed, field by field in the order of their Go
// types. A field with omitempty is left out when it is zero.

func authzValue(in *sealed.Input, reads fieldSet, limit int) (ast.Value, error) {
	t := &terms{left: limit, reads: reads, members: make([][2]*ast.Term, 0, maxMembers)}
	o := t.object()
	o.shared(in)
	o.profile(&in.Profile)
	o.key(&in.Key)
	if t.err != nil {
		return nil, t.err
	}
	return o.value(), nil
}

// maxMembers is how many members are under construction at once: all objects
// but the key are done by then.
const maxMembers = 9 + 12

// shared adds what does not change from key to key of a run.
func (o *object) shared(in *sealed.Input) {
	o.str(fPhase, in.Phase)
	o.time(in.Time)
	o.str(fTenant, string(in.Tenant))
	o.requester(&in.Requester)
	o.agent(&in.Agent)
	o.run(&in.Run)
	if in.Reason != "" {
		o.str(fReason, in.Reason)
	}
}

func (o *object) requester(r *sealed.Requester) {
	in := o.object()
	in.str(fRequesterEntityID, r.EntityID)
	in.str(fRequesterName, r.Name)
	in.str(fRequesterPerson, r.Person)
	in.strs(fRequesterGroups, r.Groups)
	if o.reads.has(fRequesterClaims) {
		in.add(fRequesterClaims, o.strMap(r.Claims))
	} else {
		for k, v := range r.Claims {
			if !o.fits(k) || !o.fits(v) {
				break
			}
		}
	}
	in.in(requesterTerm)
}

func (o *object) agent(a *sealed.InputAgent) {
	in := o.object()
	in.str(fAgentName, string(a.Name))
	in.str(fAgentDefinitionDigest, string(a.DefinitionDigest))
	if a.SPIFFEID != "" {
		in.str(fAgentSPIFFEID, a.SPIFFEID)
	}
	in.in(agentTerm)
}

func (o *object) run(r *sealed.InputRun) {
	in := o.object()
	in.str(fRunID, string(r.ID))
	in.str(fRunMode, r.Mode)
	in.str(fRunWorkflow, r.Workflow)
	in.flag(fRunWorkflowProven, r.WorkflowProven)
	if o.reads.has(fRunTags) {
		in.add(fRunTags, list(o.terms, r.Tags, o.tag))
	} else {
		for _, x := range r.Tags {
			if !o.fits(x.Name) {
				break
			}
		}
	}
	in.str(fRunBackend, r.Backend)
	in.str(fRunIsolation, r.Isolation)
	in.str(fRunAssurance, r.Assurance)
	in.str(fRunNetwork, r.Network)
	in.flag(fRunInteractive, r.Interactive)
	in.in(runTerm)
}

func (t *terms) tag(x sealed.InputTag) *ast.Term {
	return t.term(ast.NewObject(member("name", t.str(x.Name)), member("proven", ast.InternedTerm(x.Proven))))
}

func (o *object) profile(p *sealed.InputProfile) {
	in := o.object()
	in.str(fProfileName, string(p.Name))
	in.str(fProfileLevel, p.Level)
	in.num(fProfileVersion, int64(p.Version))
	in.str(fProfileOwner, p.Owner)
	in.strs(fProfileTags, p.Tags)
	in.strs(fProfileAllowedWorkflows, p.AllowedWorkflows)
	in.in(profileTerm)
}

func (o *object) key(k *sealed.InputKey) {
	in := o.object()
	in.str(fKeyName, string(k.Name))
	in.str(fKeySource, string(k.Source))
	in.str(fKeySourceKind, k.SourceKind)
	in.strs(fKeyAgents, k.Agents)
	in.strs(fKeyWorkflows, k.Workflows)
	in.strs(fKeyTags, k.Tags)
	in.str(fKeyRisk, k.Risk)
	in.str(fKeyDelivery, string(k.Delivery))
	if o.reads.has(fKeyBindings) {
		in.add(fKeyBindings, list(o.terms, k.Bindings, o.binding))
	} else {
		o.checkBindings(k.Bindings)
	}
	in.num(fKeyTTL, k.TTL)
	in.num(fKeyMaxTTL, k.MaxTTL)
	in.flag(fKeyRequesterMatches, k.RequesterMatches)
	in.in(keyTerm)
}

func (t *terms) binding(b sealed.Binding) *ast.Term {
	return t.term(ast.NewObject(
		member("host", t.str(b.Host)),
		member("methods", t.strs(b.Methods)),
		member("paths", t.strs(b.Paths)),
		member("header", t.str(b.Header)),
		member("format", t.str(b.Format)),
	))
}

func (t *terms) checkBindings(bindings []sealed.Binding) {
	for _, b := range bindings {
		for _, list := range [][]string{b.Methods, b.Paths, {b.Host, b.Header, b.Format}} {
			for _, s := range list {
				if !t.fits(s) {
					return
				}
			}
		}
	}
}

func approvalValue(in *sealed.ApprovalInput, limit int) (ast.Value, error) {
	t := &terms{left: limit}
	approval := nullTerm
	if in.Approval != nil {
		v, err := jsonValue(in.Approval, limit)
		if err != nil {
			return nil, fmt.Errorf("encoding approval: %w", err)
		}
		t.take(len(in.Approval))
		approval = ast.NewTerm(v)
	}
	vote := func(v sealed.Vote) *ast.Term {
		members := [][2]*ast.Term{
			member("person", t.str(v.Person)),
			member("entity_id", t.str(v.EntityID)),
			member("name", t.str(v.Name)),
			member("yes", ast.InternedTerm(v.Yes)),
			member("at", t.str(t.timeText(v.At))),
		}
		if len(v.Groups) > 0 {
			members = append(members, member("groups", t.strs(v.Groups)))
		}
		return t.term(ast.NewObject(members...))
	}
	voter := in.Voter
	v := ast.NewObject(
		member("time", t.str(t.timeText(in.Time))),
		member("tenant", t.str(string(in.Tenant))),
		member("voter", t.term(ast.NewObject(
			member("entity_id", t.str(voter.EntityID)),
			member("name", t.str(voter.Name)),
			member("person", t.str(voter.Person)),
			member("groups", t.strs(voter.Groups)),
			member("claims", t.strMap(voter.Claims)),
		))),
		member("approval", approval),
		member("votes", list(t, in.Votes, vote)),
	)
	return v, t.err
}
