# METADATA
# title: No production keys outside of working hours
# description: |
#   An overlay: a bundle of its own, whose decision is combined with that of
#   the tenant's policy, so it can only narrow. A run that says production, or
#   a key that is for production, gets an answer from Monday to Friday, 07:00
#   to 19:00 UTC; all other uses are none of its business. The time is the
#   engine's, in the input: a policy has no clock and no time zones.
# schemas:
#   - input: schema.authz
package sealed.authz

# METADATA
# title: The decision
# entrypoint: true
default decision := {
	"effect": "deny",
	"reasons": [{"code": "outside_hours", "msg": "production keys are for Monday to Friday, 07:00 to 19:00 UTC"}],
	"obligations": {},
}

decision := {"effect": "allow", "reasons": [], "obligations": {}} if _working_hours

decision := {"effect": "allow", "reasons": [], "obligations": {}} if _not_production

# Stated positively: a list that is missing is no answer, so it denies.
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
