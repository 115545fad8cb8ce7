# What sealed-init may call, for the token of one run. The engine checks that
# the run is the token's own; this policy only keeps everything else away.
# "watch" is not about one run: sealed-init asks for those beside its own, by
# ids that it was told, whether they go on.
path "{{mount}}/runs/+/claim" {
  capabilities = ["update"]
}
path "{{mount}}/runs/+/creds/+" {
  capabilities = ["read"]
}
path "{{mount}}/runs/+/confirm" {
  capabilities = ["update"]
}
path "{{mount}}/runs/+/requests" {
  capabilities = ["update"]
}
path "{{mount}}/runs/+/events" {
  capabilities = ["update"]
}
path "{{mount}}/runs/+/watch" {
  capabilities = ["read"]
}
path "{{mount}}/watch" {
  capabilities = ["read"]
}
path "{{mount}}/runs/+/finish" {
  capabilities = ["update"]
}
path "{{mount}}/runs/+/head" {
  capabilities = ["update"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
path "sys/leases/renew" {
  capabilities = ["update"]
  allowed_parameters = {
    "lease_id"  = ["{{mount}}/runs/*"]
    "increment" = []
  }
}
path "auth/token/revoke-self" {
  capabilities = ["update"]
}
