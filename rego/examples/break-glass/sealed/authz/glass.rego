# METADATA
# title: Production keys outside of working hours need two persons
# description: |
#   An overlay as in production-hours, with a way out. Outside of working hours
#   a production key is given when the requester may say break-glass (the tag is
#   proven) and two persons agree, for five minutes at a time. Each such use
#   is in the log with the reason break_glass, and owes a review: within a day
#   somebody who neither used the key nor agreed to it closes it with a finding.
#   Until then, whoever owes an overdue one breaks no more glass.
# schemas:
#   - input: schema.authz
package sealed.authz

# METADATA
# title: The decision
# entrypoint: true
default decision := {
	"effect": "deny",
	"reasons": [{"code": "outside_hours", "msg": "production keys are for Monday to Friday, 07:00 to 19:00 UTC; or say break-glass"}],
	"obligations": {},
}

decision := {"effect": "allow", "reasons": [], "obligations": {}} if {
	_working_hours
} else := {"effect": "allow", "reasons": [], "obligations": {}} if {
	_not_production
} else := {
	"effect": "require_approval",
	"reasons": [{"code": "break_glass", "msg": "outside of working hours two persons must approve"}],
	"obligations": {
		"ttl": 300,
		"delivery": "proxy",
		"approvals": {"quorum": 2, "groups": ["sealed-approvers"], "ttl": 300},
		"review": {"within": 86400, "groups": ["sealed-approvers"]},
	},
} if {
	some tag in input.run.tags
	tag.name == "break-glass"
	tag.proven == true
}

_not_production if {
	every tag in input.run.tags { tag.name != "production" }
	not "production" in input.key.tags
	is_array(input.key.tags)
}

_working_hours if {
	_day >= 1
	_day <= 5
	_hour >= 7
	_hour < 19
}

# 1970-01-01 was a Thursday, the fourth day of the week.
_day := (floor(_seconds / 86400) + 4) % 7

_hour := floor((_seconds % 86400) / 3600)

_seconds := floor(time.parse_rfc3339_ns(input.time) / 1000000000)
