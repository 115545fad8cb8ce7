# METADATA
# title: May this run use this key?
# description: |
#   Denies unless every fact of facts.rego holds, then asks a person when the
#   key's risk is above low. The input is sealed.Input; its schema is
#   schema/authz.json. No clock, no network and no data document is read.
# schemas:
#   - input: schema.authz
package sealed.authz

# METADATA
# title: The decision
# description: |
#   One object: effect, reasons (constant codes, sorted) and obligations.
#   The allow and require_approval branches come first because they are the
#   usual ones; the list of denials is computed only when a fact is missing.
# entrypoint: true
default decision := {
	"effect": "deny",
	"reasons": [{"code": "default_deny", "msg": "no rule allows this"}],
	"obligations": {},
}

decision := {
	"effect": "allow",
	"reasons": [],
	"obligations": {
		"ttl": min([input.key.ttl, input.key.max_ttl, 3600]),
		"delivery": input.key.delivery,
		"approvals": {},
		"egress": _egress,
	},
} if {
	_clear
	input.key.risk == "low"
} else := {
	"effect": "require_approval",
	"reasons": [ask.reason],
	"obligations": {
		"ttl": min([input.key.ttl, input.key.max_ttl, 900]),
		"delivery": "proxy",
		"approvals": {"quorum": ask.quorum, "groups": ["sealed-approvers"], "ttl": 900},
		"egress": _egress,
	},
} if {
	_clear
	ask := _ask[input.key.risk]
} else := {"effect": "deny", "reasons": [r | some r in _denials], "obligations": {}} if {
	count(_denials) > 0
}

# _clear says that every fact holds. The first two rules are the usual uses,
# decided fast: each line states, in place, one of the ways in which a fact of
# facts.rego can hold, because a call of a rule costs more than all comparisons
# of one of these rules. They allow nothing that the third, which is complete,
# does not; a test compares them. OPA's index picks them by the key's lists.

# A key of low risk under proxy that does not narrow its profile.
_clear if {
	input.key.workflows == []
	input.key.tags == []
	input.key.risk == "low" # _fits_risk
	input.key.delivery == "proxy" # _no_opaque_tunnel
	input.key.requester_matches == true
	input.run.mode == "jit"
	input.run.workflow_proven == true # _workflow_proven
	input.agent.name == input.key.agents[_] # _agent_listed
	input.run.workflow == input.profile.allowed_workflows[_] # _profile_takes_workflow
	every tag in input.run.tags { tag.proven == true } # _tags_proven
	input.key.ttl > 0
	input.key.max_ttl > 0
	_identity_present
}

# The same key, narrowed to this workflow and to a tag of the run.
_clear if {
	input.run.workflow == input.key.workflows[_] # _key_takes_workflow
	input.run.tags[_].name == input.key.tags[_] # _key_takes_tags, proven below
	input.key.risk == "low"
	input.key.delivery == "proxy"
	input.key.requester_matches == true
	input.run.mode == "jit"
	input.run.workflow_proven == true
	input.agent.name == input.key.agents[_]
	input.run.workflow == input.profile.allowed_workflows[_]
	every tag in input.run.tags { tag.proven == true }
	input.key.ttl > 0
	input.key.max_ttl > 0
	_identity_present
}

# Every fact. denials.rego names the reason for each fact that is missing; a
# test proves that _clear holds exactly when _denials is empty.
_clear if {
	input.run.mode == "jit"
	input.key.requester_matches == true
	input.agent.name in input.key.agents
	input.key.ttl > 0
	input.key.max_ttl > 0
	_fits_risk
	_identity_present
	_profile_takes_workflow
	_key_takes_workflow
	_workflow_proven
	_key_takes_tags
	_tags_proven
	_no_opaque_tunnel
}

_fits_risk if input.key.risk == "low"

_fits_risk if {
	_risk_asks
	input.key.delivery == "proxy"
	_isolated
	_attested
}

# How many persons a risk asks for, and why.
_ask := {
	"high": {
		"quorum": 1,
		"reason": {"code": "risk_high", "msg": "the key is of high risk: one person must approve"},
	},
	"critical": {
		"quorum": 2,
		"reason": {"code": "risk_critical", "msg": "the key is of critical risk: two persons must approve"},
	},
}

# With network none nothing but the bound hosts is to be reached.
default _egress := ""

_egress := "bound" if input.run.network == "none"
