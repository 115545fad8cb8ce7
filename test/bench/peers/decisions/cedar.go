package main

import (
	"fmt"
	"strconv"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"

	"sealed.dev/sealed/internal/sealed"
)

// The default policy in Cedar. Whether a person is to be asked is a second question, because Cedar knows only yes and no.
const cedarPolicies = `
permit (principal, action == Action::"use", resource) when { resource.risk == "low" };
permit (principal, action == Action::"ask", resource) when { resource.risk == "high" || resource.risk == "critical" };
@id("agent_not_allowed") forbid (principal, action, resource) unless { resource.agents.contains(context.agent) };
@id("workflow_not_allowed") forbid (principal, action, resource) unless { resource.allowed_workflows.containsAny([context.workflow, "*"]) };
@id("workflow_not_allowed") forbid (principal, action, resource) unless { resource.workflows.isEmpty() || resource.workflows.containsAny([context.workflow, "*"]) };
@id("workflow_unproven") forbid (principal, action, resource) unless { context.workflow == "" || context.workflow_proven };
@id("tag_not_allowed") forbid (principal, action, resource) unless { resource.tags.isEmpty() || resource.tags.containsAny(context.proven_tags) };
@id("tag_unproven") forbid (principal, action, resource) unless { context.unproven_tags.isEmpty() };
@id("requester_not_allowed") forbid (principal, action, resource) unless { context.requester_matches };
@id("mode_no_keys") forbid (principal, action, resource) unless { context.mode == "jit" };
@id("value_delivery_high_risk") forbid (principal, action, resource) when { resource.delivery != "proxy" && resource.risk != "low" };
@id("same_uid_high_risk") forbid (principal, action, resource) when { !["own_uid", "container", "pod", "lambda"].contains(context.isolation) && resource.risk != "low" };
@id("launcher_assurance") forbid (principal, action, resource) when {
  !(context.assurance == "attested" || (context.phase == "enqueue" && context.assurance == "")) && resource.risk != "low" };
@id("env_opaque_tunnel") forbid (principal, action, resource) when { resource.delivery != "proxy" && context.network != "none" };
@id("identity_missing") forbid (principal, action, resource) unless {
  context.phase == "enqueue" || (["issue", "request"].contains(context.phase) && context.spiffe_id != "") };
@id("ttl_invalid") forbid (principal, action, resource) unless { resource.ttl > 0 && resource.max_ttl > 0 };
`

var (
	cedarUse = types.NewEntityUID("Action", "use")
	cedarAsk = types.NewEntityUID("Action", "ask")
)

func newCedar() (*cedar.PolicySet, error) {
	set, err := cedar.NewPolicySetFromBytes("policy.cedar", []byte(cedarPolicies))
	if err != nil {
		return nil, fmt.Errorf("parsing Cedar policies: %w", err)
	}
	return set, nil
}

// cedarKey is a key and its profile, which Cedar finds by name.
func cedarKey(name string, in *sealed.Input) (types.EntityUID, types.Entity) {
	uid := types.NewEntityUID("Key", types.String(name))
	return uid, types.Entity{UID: uid, Attributes: types.NewRecord(types.RecordMap{
		"allowed_workflows": cedarSet(in.Profile.AllowedWorkflows), "agents": cedarSet(in.Key.Agents), "workflows": cedarSet(in.Key.Workflows), "tags": cedarSet(in.Key.Tags),
		"risk": types.String(in.Key.Risk), "delivery": types.String(in.Key.Delivery), "ttl": types.Long(in.Key.TTL), "max_ttl": types.Long(in.Key.MaxTTL),
	})}
}

func cedarSet(xs []string) types.Set {
	values := make([]types.Value, 0, len(xs))
	for _, x := range xs {
		values = append(values, types.String(x))
	}
	return types.NewSet(values...)
}

// cedarContext is the rest of the request.
func cedarContext(in *sealed.Input) types.Record {
	var proven, unproven []string
	for _, t := range in.Run.Tags {
		if t.Proven {
			proven = append(proven, t.Name)
		} else {
			unproven = append(unproven, t.Name)
		}
	}
	return types.NewRecord(types.RecordMap{
		"agent": types.String(in.Agent.Name), "spiffe_id": types.String(in.Agent.SPIFFEID), "phase": types.String(in.Phase),
		"mode": types.String(in.Run.Mode), "workflow": types.String(in.Run.Workflow), "workflow_proven": types.Boolean(in.Run.WorkflowProven),
		"proven_tags": cedarSet(proven), "unproven_tags": cedarSet(unproven), "isolation": types.String(in.Run.Isolation),
		"assurance": types.String(in.Run.Assurance), "network": types.String(in.Run.Network), "requester_matches": types.Boolean(in.Key.RequesterMatches),
	})
}

// decideCedar asks once, and once more if the answer is no.
func decideCedar(set *cedar.PolicySet, entities types.EntityMap, key types.EntityUID, in *sealed.Input) sealed.Effect {
	req := cedar.Request{Principal: types.NewEntityUID("Run", types.String(in.Run.ID)), Action: cedarUse, Resource: key, Context: cedarContext(in)}
	if d, _ := cedar.Authorize(set, entities, req); d == cedar.Allow {
		return sealed.EffectAllow
	}
	req.Action = cedarAsk
	if d, _ := cedar.Authorize(set, entities, req); d == cedar.Allow {
		return sealed.EffectRequireApproval
	}
	return sealed.EffectDeny
}

func profileName(i int) string { return "team-" + strconv.Itoa(i) + "/release" }
