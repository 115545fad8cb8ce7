# Uploads signed policy bundles and overlays, puts bundles on trial and tries them. Cannot add a key that signs them, nor take an overlay away alone.
path "{{mount}}/policy" {
  capabilities = ["read", "update"]
}
path "{{mount}}/policy/shadow" {
  capabilities = ["read", "update", "delete"]
}
path "{{mount}}/policy/overlay" {
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
path "{{mount}}/proposals/overlay" {
  capabilities = ["list"]
}
path "{{mount}}/proposals/overlay/" {
  capabilities = ["list"]
}
path "{{mount}}/proposals/overlay/+" {
  capabilities = ["read"]
}
path "{{mount}}/proposals/overlay/+/confirm" {
  capabilities = ["update"]
}
path "{{mount}}/proposals/overlay/+/reject" {
  capabilities = ["update"]
}
