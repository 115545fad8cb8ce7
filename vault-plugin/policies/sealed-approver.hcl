# Says yes or no. The engine checks who may vote on what.
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
