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
#   One object: effect, reasons (constant codes, sorted) and obligations. The
#   first branch that holds answers. The first two are the usual uses, decided
#   fast; they say nothing that the two after them, which are complete, do not,
#   and a test compares them. The denials are listed only when a fact is missing.
# entrypoint: true
default decision := {
	"effect": "deny",
	"reasons": [{"code": "default_deny", "msg": "no rule allows this"}],
	"obligations": {},
}

decision := {
	"effect": "allow",
	"reasons": [],
	"obligations": {"ttl": ttl, "delivery": "proxy", "approvals": {}, "egress": object.get({"none": "bound"}, [input.run.network], "")},
} if {
	input.key.risk == "low"
	_usual == true
	ttl := min([input.key.ttl, input.key.max_ttl, 3600])
	ttl > 0
} else := {
	"effect": "require_approval",
	"reasons": ask.reasons,
	"obligations": {"ttl": ttl, "delivery": "proxy", "approvals": ask.approvals, "egress": object.get({"none": "bound"}, [input.run.network], "")},
} if {
	_usual == true
	ask := _ask[input.key.risk]
	input.run.isolation in {"own_uid", "container", "pod", "lambda"} # _isolated
	input.run.assurance == "attested" # _attested
	ttl := min([input.key.ttl, input.key.max_ttl, 900])
	ttl > 0
} else := {
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
	"reasons": ask.reasons,
	"obligations": {
		"ttl": min([input.key.ttl, input.key.max_ttl, 900]),
		"delivery": "proxy",
		"approvals": ask.approvals,
		"egress": _egress,
	},
} if {
	_clear
	ask := _ask[input.key.risk]
} else := {"effect": "deny", "reasons": [r | some r in _denials], "obligations": {}} if {
	count(_denials) > 0
}

# The facts of a usual use but those about risk and TTL: each line states, in
# place, one of the ways in which a fact of facts.rego can hold, because a call
# of a rule costs more than all comparisons here. OPA's index picks the rule by
# the key's lists.

# A key under proxy that does not narrow its profile.
_usual if {
	input.key.workflows == []
	input.key.tags == []
	input.key.delivery == "proxy" # _no_opaque_tunnel
	input.key.requester_matches == true
	input.run.mode == "jit"
	input.run.workflow_proven == true # _workflow_proven
	input.agent.name == input.key.agents[_] # _agent_listed
	input.run.workflow == input.profile.allowed_workflows[_] # _profile_takes_workflow
	input.run.tags == [tag | some tag in input.run.tags; tag.proven == true] # _tags_proven
	_identity_present == true
}

# The same key, narrowed to this workflow and to a tag of the run.
_usual if {
	input.run.workflow == input.key.workflows[_] # _key_takes_workflow
	input.run.tags[_].name == input.key.tags[_] # _key_takes_tags, proven below
	input.key.delivery == "proxy"
	input.key.requester_matches == true
	input.run.mode == "jit"
	input.run.workflow_proven == true
	input.agent.name == input.key.agents[_]
	input.run.workflow == input.profile.allowed_workflows[_]
	input.run.tags == [tag | some tag in input.run.tags; tag.proven == true]
	_identity_present == true
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

# What a risk asks for: how many persons, and why.
_ask := {
	"high": {
		"reasons": [{"code": "risk_high", "msg": "the key is of high risk: one person must approve"}],
		"approvals": {"quorum": 1, "groups": ["sealed-approvers"], "ttl": 900},
	},
	"critical": {
		"reasons": [{"code": "risk_critical", "msg": "the key is of critical risk: two persons must approve"}],
		"approvals": {"quorum": 2, "groups": ["sealed-approvers"], "ttl": 900},
	},
}

# With network none nothing but the bound hosts is to be reached.
default _egress := ""

_egress := "bound" if input.run.network == "none"
