package main

import (
	"context"
	"errors"
	"io/fs"
	"strings"

	"sealed.dev/sealed/internal/devstack"
	"sealed.dev/sealed/internal/sandbox"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// hints are the next things to try, for what Vault, the engine, the policy's
// tools and the operating system say. The first that fits counts: the error has
// to be of the kind, and to hold the words; no words fit everything.
var hints = [...]struct {
	is    error
	words string
	hint  string
}{
	{context.Canceled, "", ""},
	{sealed.ErrApprovalRequired, "", "sealedctl approvals list"},
	{sealed.ErrUnavailable, "Vault is sealed", "vault operator unseal"},
	{sealed.ErrUnavailable, "certificate signed by unknown authority", "set VAULT_CACERT to the file with Vault's CA"},
	{sealed.ErrUnavailable, "until config/attest-rollback", "sealedctl audit rollback show"},
	{sealed.ErrUnavailable, "", "sealedctl doctor"},
	{sealed.ErrConflict, "expired", "ask for it again"},
	{sealed.ErrConflict, "", "read it again; somebody else changed it"},
	{sealed.ErrDenied, "invalid token", "log in again with `vault login`, or set VAULT_TOKEN"},
	{sealed.ErrDenied, "permission denied", "sealedctl doctor, which shows what your token may do"},
	{sealed.ErrDenied, "refused", "check the name: it does not exist, or is not for you"},
	{sandbox.ErrNoBubblewrap, "", "apt install bubblewrap"},
	{sandbox.ErrUserNS, "", "sealedctl doctor"},
	{devstack.ErrNoCompiler, "", "apt install gcc libc6-dev"},
	{sealed.ErrNotFound, "is missing: ", "set SEALED_LIBEXEC to where it is, or: eval \"$(sealedctl dev env)\""},
	{fs.ErrNotExist, "trust file", "set SEALED_TRUST_FILE to where it is, or: eval \"$(sealedctl dev env)\""},
	{sealed.ErrInvalid, "trust file", "have root write it anew, or: sealedctl dev up"},
	{fs.ErrNotExist, "workload API", "start the SPIRE agent, or: sealedctl dev up"},
	{fs.ErrNotExist, "CA of Vault", "set VAULT_CACERT to the file with Vault's CA"},
	{sealed.ErrInvalid, "Vault's address", "set VAULT_ADDR to https://HOST:PORT"},
	{sealed.ErrInvalid, "field agent:", "sealedctl agent list"},
	{sealed.ErrInvalid, "field profile:", "sealedctl profile list"},
	{sealed.ErrInvalid, ".source:", "sealedctl source list"},
	{sealed.ErrInvalid, "parsing profile", "mend the field and send it again"},
	{sealed.ErrInvalid, "bundle", "sealedctl policy status"},
}

// hintOf returns the next thing to try, or "".
func hintOf(err error) string {
	var hint *hintError
	if errors.As(err, &hint) {
		return hint.hint
	}
	var waits *vaultclient.ProposedError
	if errors.As(err, &waits) {
		return "as another person: sealedctl proposals confirm " + string(waits.ID)
	}
	for _, h := range hints {
		if errors.Is(err, h.is) && strings.Contains(err.Error(), h.words) {
			return h.hint
		}
	}
	if cobraUsage(err) {
		return "sealedctl --help"
	}
	return ""
}
