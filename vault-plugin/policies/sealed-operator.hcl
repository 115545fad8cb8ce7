# Starts and stops runs. Gets no credential of any run.
path "{{mount}}/runs" {
  capabilities = ["create", "update", "list"]
}
path "{{mount}}/runs/" {
  capabilities = ["list"]
}
path "{{mount}}/runs/+" {
  capabilities = ["read"]
}
path "{{mount}}/runs/+/close" {
  capabilities = ["update"]
}
path "{{mount}}/runs/+/stop" {
  capabilities = ["update"]
}
path "{{mount}}/runs/+/replay" {
  capabilities = ["update"]
}
path "{{mount}}/watch" {
  capabilities = ["read"]
}
path "{{mount}}/runs/+/record" {
  capabilities = ["read"]
}
path "{{mount}}/revocations" {
  capabilities = ["create", "update", "list"]
}
path "{{mount}}/revocations/" {
  capabilities = ["list"]
}
path "{{mount}}/revocations/+" {
  capabilities = ["read"]
}
path "{{mount}}/revocations/preview" {
  capabilities = ["update"]
}
path "{{mount}}/revocations/+/lift" {
  capabilities = ["update"]
}
path "{{mount}}/approvals" {
  capabilities = ["list", "read"]
}
path "{{mount}}/approvals/" {
  capabilities = ["list"]
}
path "{{mount}}/approvals/+" {
  capabilities = ["read"]
}
path "{{mount}}/profiles/preview" {
  capabilities = ["update"]
}
path "{{mount}}/policy/decide" {
  capabilities = ["update"]
}
path "{{mount}}/log/*" {
  capabilities = ["read"]
}
path "{{mount}}/log/seen" {
  capabilities = ["update"]
}
# After a hard revocation: drop the leases of the runs it stopped.
path "sys/leases/revoke-prefix/{{mount}}/runs/*" {
  capabilities = ["update", "sudo"]
}
path "{{mount}}/policy/bundle/+" {
  capabilities = ["read"]
}
