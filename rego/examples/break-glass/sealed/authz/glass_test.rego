package sealed.authz_test

import data.sealed.authz

_decide(at, run, key) := d if {
	d := authz.decision with input as {"time": at, "run": {"tags": run}, "key": {"tags": key}}
}

_day := "2026-05-01T10:00:00Z"

_night := "2026-05-01T23:00:00Z"

_production := {"name": "production", "proven": true}

_glass(proven) := {"name": "break-glass", "proven": proven}

test_by_day if _decide(_day, [_production], []).effect == "allow"

test_by_night if {
	d := _decide(_night, [_production], [])
	d.effect == "deny"
	[r.code | some r in d.reasons] == ["outside_hours"]
	_decide(_night, [], []).effect == "allow"
	_decide(_night, [_production, _glass(false)], []).effect == "deny"
}

test_break_glass if {
	every run in [[_production, _glass(true)], [_glass(true), _production]] {
		d := _decide(_night, run, [])
		d.effect == "require_approval"
		[r.code | some r in d.reasons] == ["break_glass"]
		d.obligations.approvals.quorum == 2
		d.obligations.ttl == 300
	}
	_decide(_night, [_glass(true)], ["production"]).effect == "require_approval"
}

test_nothing_known if {
	d := authz.decision with input as {}
	d.effect == "deny"
}
