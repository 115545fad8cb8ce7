package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// checkVault goes from the address to the powers of the token, and stops where
// the next question makes no sense.
func (a *app) checkVault(ctx context.Context) []check {
	open, err := a.anonymous()
	if err != nil {
		return []check{bad(checkFail, "vault", hintOr(err, "set VAULT_ADDR and VAULT_CACERT"), "%v", err)}
	}
	vault := checkSeal(ctx, open)
	if vault.State == checkFail {
		return []check{vault}
	}
	e, err := a.engine(ctx)
	if err != nil {
		return []check{vault, bad(checkFail, "token", hintOr(err, "log in with vault login"), "%v", err)}
	}
	token := checkToken(ctx, e.Client())
	if token.State == checkFail {
		return []check{vault, token}
	}
	checks := []check{vault, token}
	engine := checkEngine(ctx, e)
	checks = append(checks, engine)
	if engine.State != checkFail {
		checks = append(checks, checkConfigured(ctx, e), checkPolicy(ctx, e, time.Now()), checkOverlay(ctx, e, time.Now()), checkSecondPerson(ctx, e))
	}
	checks = append(checks, checkPowers(ctx, e)...)
	return append(checks, checkHolders(ctx, e)...)
}

func hintOr(err error, other string) string {
	if h := hintOf(err); h != "" && h != "sealedctl doctor" {
		return h
	}
	return other
}

// anonymous returns a client without a token, for what everyone may ask.
func (a *app) anonymous() (*vaultclient.Client, error) {
	if a.addr == "" {
		return nil, &hintError{err: fmt.Errorf("no Vault address: %w", sealed.ErrInvalid), hint: "set VAULT_ADDR, or: eval \"$(sealedctl dev env)\""}
	}
	return newClient(a.addr, a.caFile, "")
}

func checkSeal(ctx context.Context, c *vaultclient.Client) check {
	const name = "vault"
	s, err := c.Sys(ctx, http.MethodGet, "sys/seal-status", nil)
	if err != nil {
		return bad(checkFail, name, "start Vault, or mend VAULT_ADDR and VAULT_CACERT", "it does not answer: %v", err)
	}
	if up, _ := s["initialized"].(bool); !up {
		return bad(checkFail, name, "vault operator init", "it is not initialized")
	}
	if closed, _ := s["sealed"].(bool); closed {
		return bad(checkFail, name, "vault operator unseal", "it is sealed")
	}
	return ok(name, "unsealed, version %v", s["version"])
}

func checkToken(ctx context.Context, c *vaultclient.Client) check {
	const name = "token"
	t, err := c.Read(ctx, "auth/token/lookup-self", nil)
	if err != nil {
		return bad(checkFail, name, "log in again with vault login", "it is not accepted")
	}
	if id, _ := t["entity_id"].(string); id == "" {
		return bad(checkWarn, name, "log in as a person", "it belongs to nobody: it can neither enqueue runs nor vote")
	}
	return ok(name, "%v, ends in %v s", t["display_name"], t["ttl"])
}

func checkEngine(ctx context.Context, e *vaultclient.Engine) check {
	const name = "engine"
	kind, version, err := e.PluginVersion(ctx)
	switch {
	case err != nil:
		return bad(checkFail, name, "mount the engine, or name its mount with --mount", "%s/ is not there, or not for this token", e.Mount())
	case !strings.Contains(kind, "sealed"):
		return bad(checkFail, name, "name the mount with --mount", "%s/ is a mount of %s", e.Mount(), kind)
	}
	return ok(name, "%s/ is %s %s", e.Mount(), kind, version)
}

func checkConfigured(ctx context.Context, e *vaultclient.Engine) check {
	const name = "log"
	switch _, err := e.LogReader().Checkpoint(ctx); {
	case errors.Is(err, sealed.ErrDenied):
		return bad(checkSkip, name, "ask with the token of an operator or auditor", "this token may not read the log")
	case err != nil:
		return bad(checkFail, name, "write "+e.Mount()+"/config", "the mount is not configured, or can't write its log: %v", err)
	}
	return ok(name, "the mount is configured and its log has a head")
}

// checkSecondPerson says whether one person can widen what agents reach.
func checkSecondPerson(ctx context.Context, e *vaultclient.Engine) check {
	const name = "second person"
	switch on, err := e.SecondPerson(ctx); {
	case errors.Is(err, sealed.ErrDenied):
		return bad(checkSkip, name, "ask with the token of who configures the mount", "this token may not read the mount's configuration")
	case err != nil:
		return bad(checkSkip, name, "write "+e.Mount()+"/config", "the mount's configuration can't be read: %v", err)
	case !on:
		return bad(checkWarn, name, "vault write "+e.Mount()+"/config second_person=true", "one person can widen what agents reach: nobody confirms it")
	}
	return ok(name, "a change that widens waits for another person")
}

// soon is when an expiry is worth a warning.
const soon = 7 * 24 * time.Hour

func checkPolicy(ctx context.Context, e *vaultclient.Engine, now time.Time) check {
	const name, next = "policy", "sealedctl policy upload"
	s, err := e.PolicyStatus(ctx)
	switch {
	case errors.Is(err, sealed.ErrDenied):
		return bad(checkSkip, name, "ask with the token of a policy administrator", "this token may not read the policy's status")
	case errors.Is(err, sealed.ErrNotFound) || err == nil && s.Digest == "":
		return bad(checkFail, name, next, "no bundle is in force: everything is denied")
	case err != nil:
		return bad(checkFail, name, next, "%v", err)
	case !now.Before(s.Expires):
		return bad(checkFail, name, next, "the bundle expired %s: everything is denied", stamp(s.Expires))
	case s.Expires.Sub(now) < soon:
		return bad(checkWarn, name, next, "the bundle expires %s", stamp(s.Expires))
	}
	return ok(name, "sequence %d, expires %s", s.Sequence, stamp(s.Expires))
}

// checkOverlay says nothing worse than that there is none where a policy alone
// decides.
func checkOverlay(ctx context.Context, e *vaultclient.Engine, now time.Time) check {
	const name, next = "overlay", "sealedctl policy overlay upload"
	o, err := e.PolicyOverlay(ctx)
	switch {
	case errors.Is(err, sealed.ErrDenied):
		return bad(checkSkip, name, "ask with the token of a policy administrator", "this token may not read the policy's overlay")
	case errors.Is(err, sealed.ErrNotFound) || err == nil && o.State == "removed":
		return ok(name, "none: the policy decides alone")
	case err != nil:
		return bad(checkFail, name, next, "%v", err)
	case o.State == "expired":
		return bad(checkFail, name, next, "the overlay expired %s: everything is denied", stamp(o.Expires))
	case o.State != "in_force":
		return bad(checkFail, name, next, "the overlay is %s: nothing is decided", o.State)
	case o.Expires.Sub(now) < soon:
		return bad(checkWarn, name, next, "the overlay expires %s", stamp(o.Expires))
	}
	return ok(name, "sequence %d, expires %s", o.Sequence, stamp(o.Expires))
}

// A power is a path that stands for a role: who may do this holds that role.
type power struct{ role, path, capability string }

// powers lists the roles of the engine and, without a mount, those of Vault
// that are above any wall of the engine.
func powers(mount string) []power {
	const id = "00000000000000000000000000"
	in := func(p string) string { return mount + "/" + p }
	return []power{
		{"sealed-root", in("config"), "update"},
		{"sealed-policy", in("policy"), "update"},
		{"sealed-secrets", in("secrets/doctor"), "update"},
		{"sealed-profiles", in("profiles/system/doctor"), "update"},
		{"sealed-operator", in("runs"), "update"},
		{"sealed-approver", in("approvals/" + id + "/approve"), "update"},
		{"sealed-auditor", in("log/checkpoint"), "read"},
		{"sealed-agent", in("runs/" + id + "/claim"), "update"},
		{vaultAbove, "sys/raw/logical", "read"},
		{vaultAbove, "sys/policies/acl/doctor", "update"},
		{vaultAbove, "sys/plugins/catalog/secret/doctor", "update"},
		{vaultAbove, "identity/entity/name/doctor", "update"},
	}
}

const vaultAbove = "Vault administration"

// checkPowers says which roles the token holds, and which of them one person
// should not hold together.
func checkPowers(ctx context.Context, e *vaultclient.Engine) []check {
	const name = "your powers"
	all := powers(e.Mount())
	var paths []string
	for _, p := range all {
		paths = append(paths, p.path)
	}
	caps, err := e.Client().Capabilities(ctx, paths)
	if err != nil {
		return []check{bad(checkSkip, name, "let the token update sys/capabilities-self", "this token may not ask what it may do")}
	}
	var held []string
	for _, p := range all {
		has := caps[p.path]
		if (slices.Contains(has, p.capability) || slices.Contains(has, "root")) && !slices.Contains(held, p.role) {
			held = append(held, p.role)
		}
	}
	return append([]check{ok(name, "%s", join(held))}, tooMuch(held)...)
}

// tooMuch names what should be split: with these together one person can, for
// instance, make a key available to an agent and run that agent.
func tooMuch(held []string) []check {
	has := func(role string) bool { return slices.Contains(held, role) }
	const name, next = "separation", "give the roles to different people"
	var out []check
	if has(vaultAbove) {
		out = append(out, bad(checkWarn, name, "use such a token for nothing else", "this token administers Vault: no wall of the engine holds against it"))
	}
	writers := 0
	for _, role := range []string{"sealed-root", "sealed-policy", "sealed-secrets", "sealed-profiles"} {
		if has(role) {
			writers++
		}
	}
	if writers > 1 {
		out = append(out, bad(checkWarn, name, next, "one token holds %s: no second pair of eyes sees a change", describe(writers, "administrative role")))
	}
	if writers > 0 && has("sealed-operator") {
		out = append(out, bad(checkWarn, name, next, "one token can change what is allowed and run with it"))
	}
	if has("sealed-agent") && writers+len(held) > 1 {
		out = append(out, bad(checkWarn, name, "leave sealed-agent to the auth role of agents", "a person's token can call what only sealed-init should"))
	}
	return out
}
