# Reads the log, the records and what was stopped. Changes nothing.
path "{{mount}}/log/*" {
  capabilities = ["read"]
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
