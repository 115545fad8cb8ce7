# Configures the mount: tenant, trust domain, trust bundle, policy keys.
# Holds no value, no profile, no source.
path "{{mount}}/config" {
  capabilities = ["read", "update"]
}
path "{{mount}}/config/trust-bundle" {
  capabilities = ["read", "update"]
}
path "{{mount}}/config/policy-keys" {
  capabilities = ["read", "update"]
}
path "{{mount}}/config/attest-rollback" {
  capabilities = ["read", "update"]
}
# What widens waits for a second holder, who confirms or rejects it here.
path "{{mount}}/proposals/config" {
  capabilities = ["list"]
}
path "{{mount}}/proposals/config/" {
  capabilities = ["list"]
}
path "{{mount}}/proposals/config/+" {
  capabilities = ["read"]
}
path "{{mount}}/proposals/config/+/confirm" {
  capabilities = ["update"]
}
path "{{mount}}/proposals/config/+/reject" {
  capabilities = ["update"]
}
path "{{mount}}/proposals/policy-key" {
  capabilities = ["list"]
}
path "{{mount}}/proposals/policy-key/" {
  capabilities = ["list"]
}
path "{{mount}}/proposals/policy-key/+" {
  capabilities = ["read"]
}
path "{{mount}}/proposals/policy-key/+/confirm" {
  capabilities = ["update"]
}
path "{{mount}}/proposals/policy-key/+/reject" {
  capabilities = ["update"]
}
path "{{mount}}/proposals/trust" {
  capabilities = ["list"]
}
path "{{mount}}/proposals/trust/" {
  capabilities = ["list"]
}
path "{{mount}}/proposals/trust/+" {
  capabilities = ["read"]
}
path "{{mount}}/proposals/trust/+/confirm" {
  capabilities = ["update"]
}
path "{{mount}}/proposals/trust/+/reject" {
  capabilities = ["update"]
}
