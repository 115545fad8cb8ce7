# Says which keys exist, where their values come from, and who may use them.
# Cannot write a value or point a source elsewhere: that is sealed-secrets.
path "{{mount}}/agents" {
  capabilities = ["list"]
}
path "{{mount}}/agents/*" {
  capabilities = ["create", "read", "update", "delete", "list"]
}
path "{{mount}}/profiles/*" {
  capabilities = ["create", "read", "update", "patch", "delete", "list"]
}
# What widens waits for a second holder, who confirms or rejects it here.
path "{{mount}}/proposals/profile" {
  capabilities = ["list"]
}
path "{{mount}}/proposals/profile/" {
  capabilities = ["list"]
}
path "{{mount}}/proposals/profile/+" {
  capabilities = ["read"]
}
path "{{mount}}/proposals/profile/+/confirm" {
  capabilities = ["update"]
}
path "{{mount}}/proposals/profile/+/reject" {
  capabilities = ["update"]
}
