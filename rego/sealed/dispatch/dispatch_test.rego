package sealed.dispatch_test

import data.sealed.dispatch

_base := {
	"time": "2026-05-01T10:00:00Z",
	"tenant": "acme",
	"run": {
		"id": "01JTSEALED0000000000000000",
		"tenant": "acme",
		"agent": "claude-code",
		"workflow": "release",
		"backend": "docker",
		"isolation": "container",
		"network": "allowlist",
	},
	"pool": {
		"name": "ci",
		"tenant": "acme",
		"agents": ["claude-code"],
		"workflows": ["release"],
		"backend": "docker",
		"isolation": "container",
		"network": "allowlist",
	},
	"worker": {"spiffe_id": "spiffe://acme.test/sealed/tenant/acme/worker/ci", "tenant": "acme", "pool": "ci"},
}

_decide(patch) := d if {
	d := dispatch.decision with input as object.union(_base, patch)
}

_denies(patch, code) if {
	d := _decide(patch)
	d.effect == "deny"
	[r.code | some r in d.reasons] == [code]
}

test_allow if _decide({}) == {"effect": "allow", "reasons": [], "obligations": {}}

test_wrong_tenant if {
	every part in ["run", "pool", "worker"] { _denies({part: {"tenant": "other"}}, "wrong_tenant") }
}

test_worker_unknown if {
	_denies({"worker": {"spiffe_id": ""}}, "worker_unknown")
	_denies({"worker": {"pool": "other"}}, "worker_unknown")
}

test_agent_not_in_pool if {
	every agents in [[], null, ["codex"], ["*"]] { _denies({"pool": {"agents": agents}}, "agent_not_in_pool") }
}

test_workflow_not_in_pool if {
	every list in [[], null, ["build"]] { _denies({"pool": {"workflows": list}}, "workflow_not_in_pool") }
	_decide({"pool": {"workflows": ["*"]}}).effect == "allow"
}

test_backend_differs if _denies({"pool": {"backend": "local"}}, "backend_differs")

test_isolation_differs if _denies({"pool": {"isolation": "same_uid"}}, "isolation_differs")

test_network_wider if {
	every network in ["full", "", "unheard_of"] { _denies({"pool": {"network": network}}, "network_wider") }
	_denies({"run": {"network": "none"}}, "network_wider")
	_decide({"pool": {"network": "none"}}).effect == "allow"
}

test_nothing_known_denies_everything if {
	d := dispatch.decision with input as {}
	d.effect == "deny"
	count(d.reasons) == 7
}

test_default_deny if {
	d := dispatch.decision with input as {} with dispatch._denials as set()
	d.effect == "deny"
	[r.code | some r in d.reasons] == ["default_deny"]
}
