package sealed.authz_test

import data.sealed.authz

_decide(at, run, key) := d if {
	d := authz.decision with input as {"time": at, "run": {"tags": run}, "key": {"tags": key}}
}

_production := [{"name": "production", "proven": true}]

test_working_hours if {
	every at in ["2026-05-01T07:00:00Z", "2026-05-01T18:59:59.999Z", "2026-05-01T20:30:00+02:00", "2026-05-04T12:00:00Z"] {
		_decide(at, _production, []).effect == "allow"
	}
}

test_outside_hours if {
	every at in [
		"2026-05-01T06:59:59Z",
		"2026-05-01T19:00:00Z",
		"2026-05-02T12:00:00Z",
		"2026-05-03T12:00:00Z",
		"2026-05-04T08:00:00+02:00",
	] {
		d := _decide(at, _production, [])
		d.effect == "deny"
		[r.code | some r in d.reasons] == ["outside_hours"]
		_decide(at, [], ["production"]).effect == "deny"
		_decide(at, [], []).effect == "allow"
	}
}

test_nothing_known if {
	d := authz.decision with input as {}
	d.effect == "deny"
	_decide("2026-05-02T12:00:00Z", null, []).effect == "deny"
	_decide("2026-05-02T12:00:00Z", [], null).effect == "deny"
}
