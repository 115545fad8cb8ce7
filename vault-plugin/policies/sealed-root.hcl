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
