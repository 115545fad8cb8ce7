package sealed.authz_test

import data.sealed.authz

# A use that every fact allows. Each test changes one thing.
_base := {
	"phase": "issue",
	"time": "2026-05-01T10:00:00Z",
	"tenant": "acme",
	"requester": {"entity_id": "e-1", "name": "ann", "person": "ann@acme.test", "groups": ["release-eng"], "claims": {}},
	"agent": {
		"name": "claude-code",
		"definition_digest": "",
		"spiffe_id": "spiffe://acme.test/sealed/tenant/acme/agent/claude-code",
	},
	"run": {
		"id": "01JTSEALED0000000000000000",
		"mode": "jit",
		"workflow": "release",
		"workflow_proven": true,
		"tags": [{"name": "production", "proven": true}],
		"backend": "local",
		"isolation": "own_uid",
		"assurance": "attested",
		"network": "none",
		"interactive": false,
	},
	"profile": {
		"name": "team/release",
		"level": "workflow",
		"version": 7,
		"owner": "release-eng",
		"tags": ["production"],
		"allowed_workflows": ["release"],
	},
	"key": {
		"name": "GITHUB_TOKEN",
		"source": "vault-kv",
		"source_kind": "static",
		"agents": ["claude-code"],
		"workflows": ["release"],
		"tags": ["production"],
		"risk": "low",
		"delivery": "proxy",
		"bindings": [],
		"ttl": 600,
		"max_ttl": 3600,
		"requester_matches": true,
	},
}

_with(patch) := object.union(_base, patch)

_decide(patch) := d if {
	d := authz.decision with input as _with(patch)
}

_codes(patch) := [r.code | some r in _decide(patch).reasons]

_denies(patch, code) if {
	_decide(patch).effect == "deny"
	_codes(patch) == [code]
}

_allows(patch) if _decide(patch).effect == "allow"

test_allow if _allows({})

# Both usual uses, and each of their facts missing once.
test_usual if {
	plain := {"key": {"workflows": [], "tags": []}}
	every narrowed in [{}, plain] {
		_allows(narrowed)
		every patch in [
			{"phase": ""},
			{"run": {"mode": "bare"}},
			{"run": {"workflow_proven": false}},
			{"run": {"tags": [{"name": "production", "proven": true}, {"name": "x", "proven": false}]}},
			{"run": {"tags": [{"name": "production", "proven": true}, {"name": "x"}]}},
			{"run": {"tags": "production"}},
			{"profile": {"allowed_workflows": ["build"]}},
			{"agent": {"name": "codex"}},
			{"key": {"risk": "none"}},
			{"key": {"requester_matches": false}},
			{"key": {"ttl": 0}},
			{"key": {"max_ttl": 0}},
		] {
			_decide(object.union(narrowed, patch)).effect == "deny"
		}
	}
}

test_agent_not_allowed if {
	every agents in [[], null, ["codex"]] { _denies({"key": {"agents": agents}}, "agent_not_allowed") }
}

test_workflow_not_allowed_by_profile if {
	every list in [[], null, ["build"]] { _denies({"profile": {"allowed_workflows": list}}, "workflow_not_allowed") }
}

test_workflow_not_allowed_by_key if _denies({"key": {"workflows": ["build"]}}, "workflow_not_allowed")

test_workflow_any if {
	_allows({"profile": {"allowed_workflows": ["*"]}})
	_allows({"key": {"workflows": ["*"]}})
	every list in [[], null] { _allows({"key": {"workflows": list}}) }
}

test_workflow_absent_needs_a_star if {
	_denies({"run": {"workflow": ""}, "key": {"workflows": []}}, "workflow_not_allowed")
	_allows({"run": {"workflow": "", "workflow_proven": false}, "profile": {"allowed_workflows": ["*"]}, "key": {"workflows": []}})
}

test_workflow_unproven if _denies({"run": {"workflow_proven": false}}, "workflow_unproven")

test_tag_not_allowed if {
	every tags in [[], null, [{"name": "staging", "proven": true}]] {
		_denies({"run": {"tags": tags}}, "tag_not_allowed")
	}
}

test_tag_not_needed if {
	every tags in [[], null] { _allows({"key": {"tags": tags}, "run": {"tags": tags}}) }
}

test_tag_unproven if {
	tags := [{"name": "production", "proven": true}, {"name": "urgent", "proven": false}]
	_denies({"run": {"tags": tags}}, "tag_unproven")
}

test_tag_unproven_does_not_open_a_key if {
	tags := [{"name": "production", "proven": false}]
	_codes({"run": {"tags": tags}}) == ["tag_not_allowed", "tag_unproven"]
}

test_requester_not_allowed if _denies({"key": {"requester_matches": false}}, "requester_not_allowed")

test_mode_no_keys if {
	every mode in ["bare", "sandboxed", "identity", ""] { _denies({"run": {"mode": mode}}, "mode_no_keys") }
}

test_value_delivery_high_risk if {
	every risk in ["high", "critical"] {
		_denies({"key": {"risk": risk, "delivery": "env"}}, "value_delivery_high_risk")
	}
	_allows({"key": {"delivery": "env"}})
}

test_same_uid_high_risk if {
	every isolation in ["same_uid", "", "unheard_of"] {
		_denies({"key": {"risk": "high"}, "run": {"isolation": isolation}}, "same_uid_high_risk")
	}
	_allows({"run": {"isolation": "same_uid"}})
}

test_env_opaque_tunnel if {
	every network in ["full", "allowlist", ""] {
		_denies({"key": {"delivery": "env"}, "run": {"network": network}}, "env_opaque_tunnel")
		_allows({"run": {"network": network}})
	}
}

test_launcher_assurance if {
	every assurance in ["launcher", ""] {
		_denies({"key": {"risk": "high"}, "run": {"assurance": assurance}}, "launcher_assurance")
	}
	_allows({"run": {"assurance": "launcher"}})
}

test_launcher_assurance_at_enqueue if {
	_denies({"phase": "enqueue", "key": {"risk": "high"}, "run": {"assurance": "launcher"}}, "launcher_assurance")
	_decide({"phase": "enqueue", "key": {"risk": "high"}, "run": {"assurance": ""}}).effect == "require_approval"
}

test_identity_missing if {
	every phase in ["issue", "request", "", "unheard_of"] {
		_denies({"phase": phase, "agent": {"spiffe_id": ""}}, "identity_missing")
	}
	_allows({"phase": "enqueue", "agent": {"spiffe_id": ""}})
	_allows({"phase": "request"})
}

test_identity_absent if {
	i := json.remove(_base, ["/agent/spiffe_id"])
	d := authz.decision with input as i
	[r.code | some r in d.reasons] == ["identity_missing"]
}

test_risk_unknown if {
	every risk in ["", "none", null] { _denies({"key": {"risk": risk}}, "risk_unknown") }
}

test_ttl_invalid if {
	every ttl in [0, -1] {
		_denies({"key": {"ttl": ttl}}, "ttl_invalid")
		_denies({"key": {"max_ttl": ttl}}, "ttl_invalid")
	}
}

test_nothing_known_denies_everything if {
	d := authz.decision with input as {}
	d.effect == "deny"
	count(d.reasons) == 14
}

test_reasons_are_sorted if {
	codes := _codes({"run": {"mode": "bare"}, "key": {"agents": [], "requester_matches": false}})
	codes == ["agent_not_allowed", "mode_no_keys", "requester_not_allowed"]
}

# Were no reason found and no fact complete, the answer would still be deny.
test_default_deny if {
	d := authz.decision with input as {} with authz._denials as set()
	d.effect == "deny"
	[r.code | some r in d.reasons] == ["default_deny"]
}
