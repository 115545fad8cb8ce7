# METADATA
# title: What is to happen to a running run?
# description: |
#   Takes all signals that a run has raised and answers with the strongest
#   order. The effect says whether the run goes on (allow), is held until a
#   person says so (require_approval) or is stopped (deny). Each reason is one
#   order, its code from a closed list: alert, step_down (fewer requests), pause,
#   revoke (all grants, then stop), abort, restart (stop, then run again in a
#   new sandbox). A signal that is not known stops the run. The input is
#   described by schema/directive.json.
# schemas:
#   - input: schema.directive
package sealed.directive

# METADATA
# title: The decision
# description: One object with effect, reasons (orders, sorted) and, for a pause, who may end it.
# entrypoint: true
default decision := {
	"effect": "deny",
	"reasons": [{"code": "default_deny", "msg": "no rule allows this"}],
	"obligations": {},
}

decision := {"effect": "deny", "reasons": _reasons, "obligations": {}} if {
	_codes & {"abort", "revoke", "restart"} != set()
} else := {"effect": "require_approval", "reasons": _reasons, "obligations": {"approvals": {
	"quorum": 1,
	"groups": ["sealed-approvers"],
	"ttl": 900,
}}} if {
	"pause" in _codes
} else := {"effect": "allow", "reasons": _reasons, "obligations": {}} if {
	is_array(input.signals)
	_codes - {"alert", "step_down"} == set()
}

_reasons := [o | some o in _orders]

_codes := {o.code | some o in _orders}

# METADATA
# title: A signal over its limit brings the order of its kind
_orders contains _order[signal.kind] if {
	some signal in input.signals
	signal.count > signal.limit
}

# METADATA
# title: Twice over the estimate is no estimate any more
_orders contains {"code": "pause", "msg": "the run has used twice the tokens it was estimated at"} if {
	some signal in input.signals
	signal.kind == "token_estimate"
	signal.count > signal.limit * 2
}

# METADATA
# title: A signal that nobody knows stops the run
_orders contains {"code": "abort", "msg": "the run raised a signal that the policy does not know"} if {
	some signal in input.signals
	not _known(signal)
}

_known(signal) if {
	_order[signal.kind]
	is_number(signal.count)
	is_number(signal.limit)
}

_order := {
	"honeytoken_used": {"code": "abort", "msg": "a credential that only this run could know was used"},
	"redaction_burst": {"code": "pause", "msg": "the run prints credentials again and again"},
	"denied_key_burst": {"code": "pause", "msg": "the run asks again and again for keys that it may not have"},
	"new_egress_host": {"code": "alert", "msg": "the run reached a host that it had not reached before"},
	"request_rate": {"code": "step_down", "msg": "the run sends more requests than it was estimated at"},
	"token_estimate": {"code": "alert", "msg": "the run has used more tokens than it was estimated at"},
	"wall_time": {"code": "abort", "msg": "the run takes longer than it may"},
	"entry_budget": {"code": "abort", "msg": "the run has written more to the log than it may"},
	"rotation_drift": {"code": "revoke", "msg": "a credential of the run was changed behind its back"},
	"missing_capability": {"code": "restart", "msg": "the sandbox lost something that the run was decided with"},
}
