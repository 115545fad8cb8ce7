package main

import (
	"slices"
	"strings"
	"syscall"
)

// kept are the names that go-plugin and Vault's SDK read in a plug-in.
var kept = []string{
	"VAULT_BACKEND_PLUGIN", // handshake cookie
	"VAULT_PLUGIN_AUTOMTLS_ENABLED", "VAULT_PLUGIN_METADATA_MODE", "VAULT_PLUGIN_MLOCK_ENABLED", "VAULT_PLUGIN_GRPC_TIMEOUT_TYPE", "VAULT_PLUGIN_GRPC_TIMEOUT_CLOSE",
	"VAULT_VERSION",
	"PLUGIN_PROTOCOL_VERSIONS", "PLUGIN_MIN_PORT", "PLUGIN_MAX_PORT", "PLUGIN_CLIENT_CERT", "PLUGIN_MULTIPLEX_GRPC",
	"PLUGIN_UNIX_SOCKET_DIR", "PLUGIN_UNIX_SOCKET_GROUP",
	"TMPDIR", // where the socket goes
}

// noTraceback is set here because debug.SetTraceback can't go below what the
// environment asks for.
const noTraceback = "GOTRACEBACK=none"

// scrub returns the environment to run with and whether it differs from env.
func scrub(env []string) (out []string, changed bool) {
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		if slices.Contains(kept, name) {
			out = append(out, e)
		}
	}
	out = append(out, noTraceback)
	slices.Sort(out)
	return out, !slices.Equal(out, slices.Sorted(slices.Values(env)))
}

// execve is syscall.Exec: it returns only if it fails.
func execve(exe string, args, env []string) error { return syscall.Exec(exe, args, env) }
