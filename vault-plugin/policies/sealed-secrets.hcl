# Writes values and the sources they come from. No path reads a value back.
# Cannot say who may use them: that is sealed-profiles.
path "{{mount}}/sources" {
  capabilities = ["list"]
}
path "{{mount}}/sources/" {
  capabilities = ["list"]
}
path "{{mount}}/sources/+" {
  capabilities = ["create", "read", "update", "delete"]
}
path "{{mount}}/sources/+/check" {
  capabilities = ["read"]
}
path "{{mount}}/secrets/*" {
  capabilities = ["create", "read", "update", "delete", "list"]
}
# What widens waits for a second holder, who confirms or rejects it here.
path "{{mount}}/proposals/source" {
  capabilities = ["list"]
}
path "{{mount}}/proposals/source/" {
  capabilities = ["list"]
}
path "{{mount}}/proposals/source/+" {
  capabilities = ["read"]
}
path "{{mount}}/proposals/source/+/confirm" {
  capabilities = ["update"]
}
path "{{mount}}/proposals/source/+/reject" {
  capabilities = ["update"]
}
