# One rule per reason: the fact it asks for, and what a person reads when the
# fact is missing. The codes are part of the interface and never change.
package sealed.authz

# METADATA
# title: The agent must be listed in the key; an empty list is nobody
_denials contains _reason("agent_not_allowed", "the key does not list this agent") if {
	not _agent_listed
}

# METADATA
# title: The workflow must be listed in the profile; an empty list is none
_denials contains _reason("workflow_not_allowed", "profile or key does not allow this workflow") if {
	not _profile_takes_workflow
}

# METADATA
# title: A key that lists workflows must list this one
_denials contains _reason("workflow_not_allowed", "profile or key does not allow this workflow") if {
	not _key_takes_workflow
}

# METADATA
# title: The requester must be entitled to assert the workflow
_denials contains _reason("workflow_unproven", "the requester may not assert this workflow") if not _workflow_proven

# METADATA
# title: A key with tags needs one of them on the run, proven
_denials contains _reason("tag_not_allowed", "the run has none of the tags the key asks for") if not _key_takes_tags

# METADATA
# title: The requester must be entitled to assert every tag
_denials contains _reason("tag_unproven", "the requester may not assert one of the tags") if not _tags_proven

# METADATA
# title: The requester must be named by the key or the profile
_denials contains _reason("requester_not_allowed", "neither key nor profile names this requester") if {
	not input.key.requester_matches == true
}

# METADATA
# title: Only the mode jit gives keys
_denials contains _reason("mode_no_keys", "a run in this mode gets no keys") if not input.run.mode == "jit"

# METADATA
# title: The agent may hold a value of low risk only
_denials contains _reason("value_delivery_high_risk", "this delivery hands over the value; allowed for low risk only") if {
	not input.key.delivery == "proxy"
	not input.key.risk == "low"
}

# METADATA
# title: A sandbox under the operator's uid gets keys of low risk only
_denials contains _reason("same_uid_high_risk", "the sandbox has no uid of its own; allowed for low risk only") if {
	not _isolated
	not input.key.risk == "low"
}

# METADATA
# title: A run that only its launcher vouches for gets keys of low risk only
_denials contains _reason("launcher_assurance", "the run is not attested; allowed for low risk only") if {
	not _attested
	not input.key.risk == "low"
}

# METADATA
# title: A handed-over value and a way out that redaction cannot see exclude each other
_denials contains _reason("env_opaque_tunnel", "this delivery hands over the value; allowed with network none only") if {
	not _no_opaque_tunnel
}

# METADATA
# title: After enqueue the run must have an identity
_denials contains _reason("identity_missing", "the run has no attested identity") if not _identity_present

# METADATA
# title: The risk must be a known one
_denials contains _reason("risk_unknown", "the key's risk is not low, high or critical") if {
	not input.key.risk == "low"
	not _risk_asks
}

# METADATA
# title: TTLs must be positive; an obligation of 0 seconds would oblige to nothing
_denials contains _reason("ttl_invalid", "the key's ttl and max_ttl must be positive") if not _ttl_valid

_reason(code, msg) := {"code": code, "msg": msg}
