package main

import (
	"slices"

	"sealed.dev/sealed/internal/sealed"
)

// plainGo is the default policy for inputs as the engine makes them, written for speed.
func plainGo(in *sealed.Input) sealed.Decision {
	key, run := &in.Key, &in.Run
	low, asks := key.Risk == sealed.RiskLow, key.Risk == sealed.RiskHigh || key.Risk == sealed.RiskCritical
	proxy := key.Delivery == sealed.DeliveryProxy
	var codes []string
	need := func(ok bool, code string) {
		if !ok && !slices.Contains(codes, code) {
			codes = append(codes, code)
		}
	}
	need(slices.Contains(key.Agents, string(in.Agent.Name)), "agent_not_allowed")
	need(low || run.Assurance == "attested" || in.Phase == "enqueue" && run.Assurance == "", "launcher_assurance")
	need(proxy || run.Network == sealed.NetworkNone, "env_opaque_tunnel")
	need(in.Phase == "enqueue" || (in.Phase == "issue" || in.Phase == "request") && in.Agent.SPIFFEID != "", "identity_missing")
	need(run.Mode == sealed.ModeJIT, "mode_no_keys")
	need(key.RequesterMatches, "requester_not_allowed")
	need(low || asks, "risk_unknown")
	need(low || run.Isolation == "own_uid" || run.Isolation == "container" || run.Isolation == "pod" || run.Isolation == "lambda", "same_uid_high_risk")
	need(tagged(in), "tag_not_allowed")
	need(!slices.ContainsFunc(run.Tags, func(t sealed.InputTag) bool { return !t.Proven }), "tag_unproven")
	need(key.TTL > 0 && key.MaxTTL > 0, "ttl_invalid")
	need(proxy || low, "value_delivery_high_risk")
	need(lists(in.Profile.AllowedWorkflows, run.Workflow), "workflow_not_allowed")
	need(len(key.Workflows) == 0 || lists(key.Workflows, run.Workflow), "workflow_not_allowed")
	need(run.Workflow == "" || run.WorkflowProven, "workflow_unproven")
	if len(codes) > 0 {
		slices.Sort(codes)
		return plainAnswer(sealed.EffectDeny, sealed.Obligations{}, codes...)
	}
	o := sealed.Obligations{TTL: min(key.TTL, key.MaxTTL, 3600), Delivery: key.Delivery}
	if run.Network == sealed.NetworkNone {
		o.Egress = "bound"
	}
	if low {
		return plainAnswer(sealed.EffectAllow, o)
	}
	o.TTL = min(o.TTL, 900)
	o.Approvals = sealed.ApprovalObligations{Quorum: 1, Groups: approvers, TTL: 900}
	if key.Risk == sealed.RiskCritical {
		o.Approvals.Quorum = 2
	}
	return plainAnswer(sealed.EffectRequireApproval, o, "risk_"+key.Risk)
}

var approvers = []string{"sealed-approvers"}

func plainAnswer(effect sealed.Effect, o sealed.Obligations, codes ...string) sealed.Decision {
	d := sealed.Decision{Effect: effect, Obligations: o}
	for _, c := range codes {
		d.Reasons = append(d.Reasons, sealed.Reason{Code: c})
	}
	return d
}

func lists(list []string, s string) bool {
	return slices.Contains(list, s) || slices.Contains(list, "*")
}

func tagged(in *sealed.Input) bool {
	return len(in.Key.Tags) == 0 || slices.ContainsFunc(in.Run.Tags, func(t sealed.InputTag) bool {
		return t.Proven && slices.Contains(in.Key.Tags, t.Name)
	})
}
