package sealed.authz_test

_approvals(quorum) := {"quorum": quorum, "groups": ["sealed-approvers"], "ttl": 900}

test_risk_high if {
	d := _decide({"key": {"risk": "high"}})
	d.effect == "require_approval"
	[r.code | some r in d.reasons] == ["risk_high"]
	d.obligations == {"ttl": 600, "delivery": "proxy", "approvals": _approvals(1), "egress": "bound"}
}

test_risk_critical if {
	d := _decide({"key": {"risk": "critical"}})
	d.effect == "require_approval"
	[r.code | some r in d.reasons] == ["risk_critical"]
	d.obligations.approvals == _approvals(2)
}

test_obligations_low if {
	d := _decide({"key": {"delivery": "env"}})
	d == {
		"effect": "allow",
		"reasons": [],
		"obligations": {"ttl": 600, "delivery": "env", "approvals": {}, "egress": "bound"},
	}
}

# As a usual use, and as one that is not.
test_egress_bound if {
	every risk in ["low", "high"] {
		_decide({"key": {"risk": risk}}).obligations.egress == "bound"
		_decide({"key": {"risk": risk}, "profile": {"allowed_workflows": ["*"]}}).obligations.egress == "bound"
	}
}

test_egress_free if {
	every risk in ["low", "high"] {
		every network in ["full", "allowlist", "", null, []] {
			_decide({"key": {"risk": risk}, "run": {"network": network}}).obligations.egress == ""
			_decide({"key": {"risk": risk}, "run": {"network": network}, "profile": {"allowed_workflows": ["*"]}}).obligations.egress == ""
		}
	}
}

test_ttl_is_the_least if {
	_decide({"key": {"ttl": 300, "max_ttl": 200}}).obligations.ttl == 200
	_decide({"key": {"ttl": 7200, "max_ttl": 7200}}).obligations.ttl == 3600
	_decide({"key": {"risk": "high", "ttl": 7200, "max_ttl": 7200}}).obligations.ttl == 900
	_decide({"key": {"risk": "critical", "ttl": 7200, "max_ttl": 7200}}).obligations.ttl == 900
}

test_denied_obliges_to_nothing if _decide({"run": {"mode": "bare"}}).obligations == {}
