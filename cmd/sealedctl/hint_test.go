package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/devstack"
	"sealed.dev/sealed/internal/sandbox"
	"sealed.dev/sealed/internal/sealed"
)

// TestHints: what goes wrong on a host that scripts can't make gets its next
// step too. The texts are those of the packages that say them.
func TestHints(t *testing.T) {
	wrap := func(text string, err error) error { return fmt.Errorf("%s: %w", text, err) }
	for _, tc := range []struct {
		err  error
		want string
	}{
		{wrap("listing sealed/runs: Vault is sealed", sealed.ErrUnavailable), "vault operator unseal"},
		{wrap("calling sealed/runs: connection refused", sealed.ErrUnavailable), "sealedctl doctor"},
		{wrap("starting run: starting sandbox", sandbox.ErrNoBubblewrap), "apt install bubblewrap"},
		{wrap("building servers", devstack.ErrNoCompiler), "apt install gcc libc6-dev"},
		{wrap("starting run: starting sandbox", sandbox.ErrUserNS), "sealedctl doctor"},
		{wrap("starting run: sealed-init is missing: /usr/libexec/sealed/sealed-init", sealed.ErrNotFound), "SEALED_LIBEXEC"},
		{wrap("starting run: opening workload API socket /run/spire.sock", fs.ErrNotExist), "start the SPIRE agent"},
		{wrap("reading trust file: open /etc/sealed/trust.json", fs.ErrNotExist), "SEALED_TRUST_FILE"},
		{wrap("reading trust file /etc/sealed/trust.json: field log_key", sealed.ErrInvalid), "have root write it anew"},
		{wrap("writing sealed/policy: uploading bundle: verifying bundle", sealed.ErrInvalid), "sealedctl policy status"},
		{wrap("writing sealed/profiles/workflow/a", sealed.ErrConflict), "read it again"},
		{wrap("run was interrupted", errors.Join(context.Canceled, sealed.ErrUnavailable)), ""},
		{errors.New("other"), ""},
	} {
		if got := hintOf(tc.err); !strings.Contains(got, tc.want) || (tc.want == "") != (got == "") {
			t.Errorf("%v: %q, want one with %q", tc.err, got, tc.want)
		}
	}
}
