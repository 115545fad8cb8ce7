# Says yes or no, and reviews afterwards. The engine checks who may vote on what
# and review what.
path "{{mount}}/approvals" {
  capabilities = ["list", "read"]
}
path "{{mount}}/approvals/" {
  capabilities = ["list"]
}
path "{{mount}}/approvals/+" {
  capabilities = ["read"]
}
path "{{mount}}/approvals/+/approve" {
  capabilities = ["update"]
}
path "{{mount}}/approvals/+/deny" {
  capabilities = ["update"]
}
path "{{mount}}/reviews" {
  capabilities = ["list"]
}
path "{{mount}}/reviews/" {
  capabilities = ["list"]
}
path "{{mount}}/reviews/+" {
  capabilities = ["read"]
}
path "{{mount}}/reviews/+/close" {
  capabilities = ["update"]
}
