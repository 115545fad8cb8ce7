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
