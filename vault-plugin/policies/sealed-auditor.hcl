# Reads the log, the records and what was stopped. Changes nothing, but that a
# checkpoint it has kept proves a restore, which stops the mount.
path "{{mount}}/log/*" {
  capabilities = ["read"]
}
path "{{mount}}/log/seen" {
  capabilities = ["update"]
}
path "{{mount}}/runs" {
  capabilities = ["list"]
}
path "{{mount}}/runs/" {
  capabilities = ["list"]
}
path "{{mount}}/runs/+" {
  capabilities = ["read"]
}
path "{{mount}}/runs/+/record" {
  capabilities = ["read"]
}
path "{{mount}}/revocations" {
  capabilities = ["list"]
}
path "{{mount}}/revocations/" {
  capabilities = ["list"]
}
path "{{mount}}/revocations/+" {
  capabilities = ["read"]
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
path "{{mount}}/policy/bundle/+" {
  capabilities = ["read"]
}
