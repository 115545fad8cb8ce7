# An overlay has to answer this question too. It leaves votes to the policy
# that it is laid over.
package sealed.approval

decision := {"effect": "allow", "reasons": [], "obligations": {}}
