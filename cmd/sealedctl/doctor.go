package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/sealed"
)

// A check is one line of doctor. Next is what to do unless it is ok.
type check struct {
	Name   string `json:"name"`
	State  string `json:"state"` // ok, warn, fail or skip
	Detail string `json:"detail"`
	Next   string `json:"next,omitempty"`
}

// States of a check. A warning does not stop runs; a failure does. What could
// not be looked at is skipped, and says why.
const (
	checkOK   = "ok"
	checkWarn = "warn"
	checkFail = "fail"
	checkSkip = "skip"
)

func ok(name, format string, args ...any) check {
	return check{Name: name, State: checkOK, Detail: fmt.Sprintf(format, args...)}
}

func bad(state, name, next, format string, args ...any) check {
	return check{Name: name, State: state, Detail: fmt.Sprintf(format, args...), Next: next}
}

func newDoctorCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Find what keeps runs from working", Args: cobra.NoArgs,
		Long: `Doctor looks at Vault, the engine, the policy in force, this host's sandbox and
identity, and at what your own token may do: who holds what. It changes nothing.
A failed check is a failure; a warning is not.

  sealedctl doctor
  sealedctl doctor -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doctor(cmd.Context()) },
	}
}

func (a *app) doctor(ctx context.Context) error {
	trust, checks := a.checkTrust()
	checks = append(append([]check{checkSelf()}, a.checkVault(ctx)...), checks...)
	checks = append(checks, a.checkIdentity(ctx, trust)...)
	checks = append(checks, a.checkSandbox(ctx)...)
	failed := 0
	for _, c := range checks {
		if c.State == checkFail {
			failed++
		}
	}
	err := a.print(checks, func(w io.Writer) {
		for _, c := range checks {
			row(w, c.State, c.Name, c.Detail)
			if c.Next != "" && c.State != checkOK {
				row(w, "", "", "→ "+c.Next)
			}
		}
	})
	if err == nil && failed > 0 {
		err = &statusError{status: exitFailure}
	}
	return err
}

// checkSelf says which sealedctl this is: the first question of whoever is
// asked for help.
func checkSelf() check {
	v := thisVersion()
	return ok("sealedctl", "%s, %s", strings.TrimSpace(v.Version+" "+v.Revision), v.Go)
}

// checkTrust looks at the trust file: whoever can write it says whom
// sealed-init trusts.
func (a *app) checkTrust() (*sealed.TrustFile, []check) {
	const name, next = "trust file", "sealedctl dev up, or have root install the trust file"
	t, err := readTrust(a.trustFile)
	if err != nil {
		return nil, []check{bad(checkFail, name, next, "%v", err)}
	}
	if problem := writableByOthers(a.trustFile); problem != "" {
		return &t, []check{bad(checkFail, name, "chown root and chmod 0644 the file, and 0755 its directories", "%s", problem)}
	}
	checks := []check{ok(name, "%s, tenant %s, trust domain %s", a.trustFile, t.Tenant, t.TrustDomain)}
	if a.addr != "" && a.addr != t.VaultAddr {
		checks = append(checks, bad(checkWarn, "one Vault", "point VAULT_ADDR and the trust file at the same Vault", "you talk to %s, sandboxes to %s", a.addr, t.VaultAddr))
	}
	if t.TrustDomain == sealed.ReservedTrustDomain {
		checks = append(checks, bad(checkWarn, "authority", "use SPIRE where it counts; every record says which it was", "the embedded authority of one machine vouches for agents"))
	}
	return &t, checks
}
