# The facts that a use of a key needs. Each is stated positively, so that a
# field that is missing, null or of an unknown value leaves the fact undefined
# and the use denied. Lists may be null: Go encodes a nil slice so.
# A comparison other than == and a call need a fact of their own: inside "not"
# OPA would look up their arguments first, and a missing one would hide the
# denial.
package sealed.authz

# At enqueue the sandbox does not exist yet. From the claim on it has an SVID.
_identity_present if input.phase == "enqueue"

_identity_present if {
	input.phase == "issue"
	input.agent.spiffe_id != ""
}

_identity_present if {
	input.phase == "request"
	input.agent.spiffe_id != ""
}

_agent_listed if input.agent.name in input.key.agents

_ttl_valid if {
	input.key.ttl > 0
	input.key.max_ttl > 0
}

_risk_asks if _ask[input.key.risk]

# The profile must list the workflow; an empty list is none.
_profile_takes_workflow if input.run.workflow in input.profile.allowed_workflows

_profile_takes_workflow if "*" in input.profile.allowed_workflows

# The key may narrow further; here an empty list says nothing.
_key_takes_workflow if input.key.workflows == []

_key_takes_workflow if input.key.workflows == null

_key_takes_workflow if input.run.workflow in input.key.workflows

_key_takes_workflow if "*" in input.key.workflows

_workflow_proven if input.run.workflow == ""

_workflow_proven if input.run.workflow_proven == true

_key_takes_tags if input.key.tags == []

_key_takes_tags if input.key.tags == null

_key_takes_tags if {
	some tag in input.run.tags
	tag.proven == true
	tag.name in input.key.tags
}

_tags_proven if input.run.tags == null

_tags_proven if {
	every tag in input.run.tags { tag.proven == true }
}

# Under same_uid the operator's other processes can reach the sandbox.
_isolated if input.run.isolation in {"own_uid", "container", "pod", "lambda"}

_attested if input.run.assurance == "attested"

# Nothing is attested before the claim; the decision is taken again then.
_attested if {
	input.phase == "enqueue"
	input.run.assurance == ""
}

# With any delivery but proxy the agent comes to hold the value, and redaction
# cannot see into a tunnel that the agent encrypts itself.
_no_opaque_tunnel if input.key.delivery == "proxy"

_no_opaque_tunnel if input.run.network == "none"
