package sealed.approval_test

import data.sealed.approval

_base := {
	"time": "2026-05-01T10:00:00Z",
	"tenant": "acme",
	"voter": {
		"entity_id": "e-2",
		"name": "bob",
		"person": "bob@acme.test",
		"groups": ["everyone", "sealed-approvers"],
		"claims": {},
	},
	"approval": {
		"tenant": "acme",
		"requester_id": "e-1",
		"person": "ann@acme.test",
		"groups": ["sealed-approvers"],
		"expires_at": "2026-05-01T10:15:00Z",
	},
	"votes": [{"person": "cy@acme.test", "entity_id": "e-3", "name": "cy", "yes": true, "at": "2026-05-01T09:59:00Z"}],
}

_decide(patch) := d if {
	d := approval.decision with input as object.union(_base, patch)
}

_denies(patch, code) if {
	d := _decide(patch)
	d.effect == "deny"
	[r.code | some r in d.reasons] == [code]
}

test_allow if _decide({}) == {"effect": "allow", "reasons": [], "obligations": {}}

test_allow_first_vote if {
	every votes in [[], null] { _decide({"votes": votes}).effect == "allow" }
}

test_wrong_tenant if _denies({"approval": {"tenant": "other"}}, "wrong_tenant")

test_not_in_group if {
	every groups in [[], null, ["everyone"]] { _denies({"voter": {"groups": groups}}, "not_in_group") }
	every groups in [[], null] { _denies({"approval": {"groups": groups}}, "not_in_group") }
}

test_person_unknown if _denies({"voter": {"person": ""}}, "person_unknown")

test_self_approval_by_person if {
	every person in ["ann@acme.test", "Ann@ACME.test"] { _denies({"voter": {"person": person}}, "self_approval") }
}

test_self_approval_by_entity if _denies({"voter": {"entity_id": "e-1"}}, "self_approval")

test_already_voted_by_person if {
	every person in ["cy@acme.test", "CY@acme.test"] { _denies({"voter": {"person": person}}, "already_voted") }
}

test_already_voted_by_entity if _denies({"voter": {"entity_id": "e-3"}}, "already_voted")

test_expired if {
	every at in ["2026-05-01T10:15:00Z", "2026-05-01T10:15:01Z", "2026-05-01T12:15:00+02:00"] {
		_denies({"time": at}, "expired")
	}
}

test_in_time_in_another_zone if _decide({"time": "2026-05-01T12:14:59+02:00"}).effect == "allow"

test_nothing_known_denies_everything if {
	d := approval.decision with input as {}
	d.effect == "deny"
	count(d.reasons) == 6
}

test_reasons_are_sorted if {
	d := _decide({"voter": {"groups": [], "entity_id": "e-1"}})
	[r.code | some r in d.reasons] == ["not_in_group", "self_approval"]
}

# Were no reason found and no fact complete, the answer would still be deny.
test_default_deny if {
	d := approval.decision with input as {} with approval._denials as set()
	d.effect == "deny"
	[r.code | some r in d.reasons] == ["default_deny"]
}
