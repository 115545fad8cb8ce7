# METADATA
# title: May this person vote on this approval?
# description: |
#   Denies unless the voter is a known person in one of the approval's groups,
#   is not the requester, has not voted, and is in time. Persons are compared
#   without regard to case, so that two spellings are one person. The input is
#   sealed.ApprovalInput; its schema is schema/approval.json.
# schemas:
#   - input: schema.approval
package sealed.approval

# METADATA
# title: The decision
# description: One object with effect and reasons (constant codes, sorted); it never obliges to anything.
# entrypoint: true
default decision := {
	"effect": "deny",
	"reasons": [{"code": "default_deny", "msg": "no rule allows this"}],
	"obligations": {},
}

decision := {"effect": "allow", "reasons": [], "obligations": {}} if {
	_tenant_matches
	_in_group
	_person_known
	_not_requester
	_first_vote
	_in_time
} else := {"effect": "deny", "reasons": [r | some r in _denials], "obligations": {}} if {
	count(_denials) > 0
}

# METADATA
# title: Voter and approval must be of one tenant
_denials contains _reason("wrong_tenant", "the approval belongs to another tenant") if not _tenant_matches

# METADATA
# title: The voter must be in one of the groups that the policy named
_denials contains _reason("not_in_group", "the voter is in none of the groups that may approve") if not _in_group

# METADATA
# title: The voter must be a person that the identity store knows
_denials contains _reason("person_unknown", "the voter has no person claim") if not _person_known

# METADATA
# title: Nobody approves a request of their own
_denials contains _reason("self_approval", "the requester may not vote") if not _not_requester

# METADATA
# title: One person has one vote
_denials contains _reason("already_voted", "this person has voted already") if not _first_vote

# METADATA
# title: No vote after the end
_denials contains _reason("expired", "the approval has expired") if not _in_time

_tenant_matches if input.approval.tenant == input.tenant

_in_group if {
	some group in input.voter.groups
	group in input.approval.groups
}

_person_known if input.voter.person != ""

_not_requester if {
	lower(input.voter.person) != lower(input.approval.person)
	input.voter.entity_id != input.approval.requester_id
}

_first_vote if is_null(input.votes)

_first_vote if {
	every vote in input.votes {
		lower(vote.person) != lower(input.voter.person)
		vote.entity_id != input.voter.entity_id
	}
}

_in_time if time.parse_rfc3339_ns(input.time) < time.parse_rfc3339_ns(input.approval.expires_at)

_reason(code, msg) := {"code": code, "msg": msg}
