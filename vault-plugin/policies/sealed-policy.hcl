# Uploads signed policy bundles, puts them on trial and tries them. Cannot add a key that signs them.
path "{{mount}}/policy" {
  capabilities = ["read", "update"]
}
path "{{mount}}/policy/shadow" {
  capabilities = ["read", "update", "delete"]
}
path "{{mount}}/policy/decide" {
  capabilities = ["update"]
}
path "{{mount}}/config/policy-keys" {
  capabilities = ["read"]
}
path "{{mount}}/policy/bundle/+" {
  capabilities = ["read"]
}
