# METADATA
# title: May this worker of a pool start this run?
# description: |
#   Denies unless worker and pool are of the run's tenant, the worker has an
#   attested identity, and the pool offers what the run was decided for: its
#   agent, workflow, backend and isolation, and no wider network. An empty list
#   of a pool is nobody or none, as in a key. The input is described by
#   schema/dispatch.json.
# schemas:
#   - input: schema.dispatch
package sealed.dispatch

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
	_one_tenant
	_worker_known
	_agent_taken
	_workflow_taken
	_backend_fits
	_isolation_fits
	_network_fits
} else := {"effect": "deny", "reasons": [r | some r in _denials], "obligations": {}} if {
	count(_denials) > 0
}

# METADATA
# title: Run, pool and worker must be of one tenant
_denials contains _reason("wrong_tenant", "worker or pool belongs to another tenant") if not _one_tenant

# METADATA
# title: The worker must have an attested identity
_denials contains _reason("worker_unknown", "the worker has no attested identity") if not _worker_known

# METADATA
# title: The pool must list the agent
_denials contains _reason("agent_not_in_pool", "the pool does not list this agent") if not _agent_taken

# METADATA
# title: The pool must list the workflow
_denials contains _reason("workflow_not_in_pool", "the pool does not list this workflow") if not _workflow_taken

# METADATA
# title: The pool must have the backend that the run was decided for
_denials contains _reason("backend_differs", "the pool has another backend") if not _backend_fits

# METADATA
# title: The pool must have the isolation that the run was decided for
_denials contains _reason("isolation_differs", "the pool has another isolation") if not _isolation_fits

# METADATA
# title: The pool must not have a wider network than the run
_denials contains _reason("network_wider", "the pool's network is wider than the run's") if not _network_fits

_one_tenant if {
	input.run.tenant == input.tenant
	input.pool.tenant == input.tenant
	input.worker.tenant == input.tenant
}

_worker_known if {
	input.worker.pool == input.pool.name
	input.worker.spiffe_id != ""
}

_agent_taken if input.run.agent in input.pool.agents

_workflow_taken if input.run.workflow in input.pool.workflows

_workflow_taken if "*" in input.pool.workflows

_backend_fits if input.pool.backend == input.run.backend

_isolation_fits if input.pool.isolation == input.run.isolation

_network_fits if _width[input.pool.network] <= _width[input.run.network]

_width := {"none": 0, "allowlist": 1, "full": 2}

_reason(code, msg) := {"code": code, "msg": msg}
