# Says which keys the holder's own runs have, below the holder's entity id, and
# nothing about anybody else's. It can only name sources that allow level user.
# What widens waits for a holder of sealed-profiles.
path "{{mount}}/profiles/user/{{identity.entity.id}}/*" {
  capabilities = ["create", "read", "update", "patch", "delete", "list"]
}
