package sealed.directive_test

import data.sealed.directive

_run := {"id": "01JTSEALED0000000000000000", "mode": "jit", "workflow": "release", "interactive": false}

_decide(signals) := d if {
	d := directive.decision with input as {"time": "2026-05-01T10:00:00Z", "tenant": "acme", "run": _run, "signals": signals}
}

_raised(kind) := {"kind": kind, "count": 3, "limit": 2}

_codes(signals) := [r.code | some r in _decide(signals).reasons]

test_nothing_raised if {
	_decide([]) == {"effect": "allow", "reasons": [], "obligations": {}}
	_decide([{"kind": "honeytoken_used", "count": 0, "limit": 0}]).effect == "allow"
	_decide([{"kind": "wall_time", "count": 2, "limit": 2}]).effect == "allow"
}

test_goes_on if {
	every kind, code in {"new_egress_host": "alert", "token_estimate": "alert", "request_rate": "step_down"} {
		_decide([_raised(kind)]).effect == "allow"
		_codes([_raised(kind)]) == [code]
	}
}

test_pause if {
	every kind in ["redaction_burst", "denied_key_burst"] {
		d := _decide([_raised(kind)])
		d.effect == "require_approval"
		[r.code | some r in d.reasons] == ["pause"]
		d.obligations == {"approvals": {"quorum": 1, "groups": ["sealed-approvers"], "ttl": 900}}
	}
}

test_stops if {
	orders := {
		"honeytoken_used": "abort",
		"wall_time": "abort",
		"entry_budget": "abort",
		"rotation_drift": "revoke",
		"missing_capability": "restart",
	}
	every kind, code in orders {
		_decide([_raised(kind)]).effect == "deny"
		_codes([_raised(kind)]) == [code]
	}
}

test_twice_the_tokens if {
	_decide([{"kind": "token_estimate", "count": 200, "limit": 100}]).effect == "allow"
	_decide([{"kind": "token_estimate", "count": 201, "limit": 100}]).effect == "require_approval"
	_codes([{"kind": "token_estimate", "count": 201, "limit": 100}]) == ["alert", "pause"]
}

test_strongest_wins if {
	signals := [_raised("new_egress_host"), _raised("redaction_burst"), _raised("rotation_drift")]
	_decide(signals).effect == "deny"
	_codes(signals) == ["alert", "pause", "revoke"]
	_decide(array.slice(signals, 0, 2)).effect == "require_approval"
}

test_unknown_signal if {
	every signal in [
		{},
		{"kind": "unheard_of", "count": 0, "limit": 9},
		{"kind": "wall_time", "limit": 9},
		{"kind": "wall_time", "count": 1, "limit": null},
		{"kind": "wall_time", "count": "1", "limit": 9},
		"wall_time",
		null,
	] {
		d := _decide([signal, _raised("new_egress_host")])
		d.effect == "deny"
		"abort" in {r.code | some r in d.reasons}
	}
}

test_default_deny if {
	d := directive.decision with input as {}
	d.effect == "deny"
	[r.code | some r in d.reasons] == ["default_deny"]
	every signals in [null, {}, "none", true] { _codes(signals) == ["default_deny"] }
}
