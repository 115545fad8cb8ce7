# METADATA
# title: Votes are left to the policy that this one is laid over
# description: An overlay has to answer this question too.
# schemas:
#   - input: schema.approval
package sealed.approval

# METADATA
# title: The decision
# entrypoint: true
decision := {"effect": "allow", "reasons": [], "obligations": {}}
