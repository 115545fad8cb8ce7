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

test_egress_free if _decide({"run": {"network": "full"}}).obligations.egress == ""

test_ttl_is_the_least if {
	_decide({"key": {"ttl": 300, "max_ttl": 200}}).obligations.ttl == 200
	_decide({"key": {"ttl": 7200, "max_ttl": 7200}}).obligations.ttl == 3600
	_decide({"key": {"risk": "high", "ttl": 7200, "max_ttl": 7200}}).obligations.ttl == 900
	_decide({"key": {"risk": "critical", "ttl": 7200, "max_ttl": 7200}}).obligations.ttl == 900
}

test_denied_obliges_to_nothing if _decide({"run": {"mode": "bare"}}).obligations == {}
