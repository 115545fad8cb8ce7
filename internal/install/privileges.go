package install

import (
	"fmt"
	"strings"
)

// Privileges is the Vault policy, in HCL, of a token that can run every job of this
// package for one mount. It is above every wall of the engine (it can replace the
// plug-in and the policies): give it to a person, for an hour.
func Privileges(mount, authMount string) (string, error) {
	if _, err := parseMount("mount", mount); err != nil {
		return "", fmt.Errorf("listing privileges: %w", err)
	}
	if _, err := parseMount("auth_mount", authMount); err != nil {
		return "", fmt.Errorf("listing privileges: %w", err)
	}
	return strings.NewReplacer("{{mount}}", mount, "{{auth}}", authMount, "{{plugin}}", PluginName,
		"{{prefix}}", PolicyName(mount, ""), "{{role}}", PolicyName(mount, "sealed-agent")).Replace(privileges), nil
}

const privileges = `# What sealedctl install, upgrade and uninstall need for {{mount}}/.
# The holder can replace the engine and its policies: no wall of the engine holds
# against this token. Give it to a person, for an hour.

# The plug-in and the mount.
path "sys/plugins/catalog" {
  capabilities = ["read"]
}
path "sys/plugins/catalog/secret/{{plugin}}" {
  capabilities = ["create", "read", "update", "delete", "sudo"]
}
path "sys/plugins/reload/backend" {
  capabilities = ["update"]
}
path "sys/mounts" {
  capabilities = ["read"]
}
path "sys/mounts/{{mount}}" {
  capabilities = ["create", "update", "delete"]
}
path "sys/mounts/{{mount}}/tune" {
  capabilities = ["read", "update"]
}
path "sys/audit" {
  capabilities = ["read", "sudo"]
}

# Policies of this mount, and the role of its agents.
path "sys/policies/acl" {
  capabilities = ["list"]
}
path "sys/policies/acl/" {
  capabilities = ["list"]
}
path "sys/policies/acl/{{prefix}}*" {
  capabilities = ["create", "read", "update", "delete"]
}
path "sys/auth" {
  capabilities = ["read"]
}
path "sys/auth/{{auth}}" {
  capabilities = ["create", "update", "delete", "sudo"]
}
path "auth/{{auth}}/config" {
  capabilities = ["create", "read", "update"]
}
path "auth/{{auth}}/role" {
  capabilities = ["list"]
}
path "auth/{{auth}}/role/" {
  capabilities = ["list"]
}
path "auth/{{auth}}/role/{{role}}" {
  capabilities = ["create", "read", "update", "delete"]
}

# The engine itself.
path "{{mount}}/config" {
  capabilities = ["create", "read", "update"]
}
path "{{mount}}/config/trust-bundle" {
  capabilities = ["create", "read", "update"]
}
path "{{mount}}/config/policy-keys" {
  capabilities = ["create", "read", "update"]
}
path "{{mount}}/policy" {
  capabilities = ["create", "read", "update"]
}
path "{{mount}}/sources" {
  capabilities = ["list"]
}
path "{{mount}}/sources/" {
  capabilities = ["list"]
}
path "{{mount}}/sources/+" {
  capabilities = ["create", "read", "update"]
}

# Uninstall only: stop the runs, take the log away, end the leases.
path "{{mount}}/revocations" {
  capabilities = ["create", "update", "list"]
}
path "{{mount}}/revocations/" {
  capabilities = ["list"]
}
path "{{mount}}/revocations/+" {
  capabilities = ["read", "create", "update"]
}
path "{{mount}}/log/*" {
  capabilities = ["read"]
}
path "{{mount}}/runs/+/record" {
  capabilities = ["read"]
}
path "sys/leases/lookup/{{mount}}/*" {
  capabilities = ["list", "sudo"]
}
path "sys/leases/revoke-prefix/{{mount}}" {
  capabilities = ["update", "sudo"]
}
`
