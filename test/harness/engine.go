package harness

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// Source is the engine's built-in store, where Secret puts values.
const Source = sealed.Name("builtin")

func (s *Stack) addSource(ctx context.Context) error {
	c, err := s.Client(ctx, "admin")
	if err != nil {
		return err
	}
	_, err = c.Engine(s.Status.Mount).WriteSource(ctx, sealed.SourceConfig{Name: Source, Type: sealed.SourceBuiltin}, nil)
	return err
}

// Name makes a name of the test's own, fit for profiles, paths and workflows.
func (s *Stack) Name(what string) string { return fmt.Sprintf("%s%d", what, s.serial.Add(1)) }

// Token logs a user of the stack in, once, and returns the token.
func (s *Stack) Token(t testing.TB, user string) vaultclient.Token {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if token, ok := s.tokens[user]; ok {
		return token
	}
	l, err := s.Login(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	s.tokens[user] = l.Token
	return l.Token
}

// Engine returns the engine with the token of a user: admin, operator,
// approver, approver2 or auditor. "root" has Vault's root token. All calls of a
// user share their connections.
func (s *Stack) Engine(t testing.TB, user string) *vaultclient.Engine {
	t.Helper()
	token := vaultclient.Token("")
	if user != "root" {
		token = s.Token(t, user)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.clients[user]; ok {
		return c.Engine(s.Status.Mount)
	}
	c, err := s.Root()
	if err == nil && user != "root" {
		c, err = c.WithToken(string(token))
	}
	if err != nil {
		t.Fatal(err)
	}
	s.clients[user] = c
	return c.Engine(s.Status.Mount)
}

// Secret stores a value in the built-in store.
func (s *Stack) Secret(t testing.TB, path, value string) {
	t.Helper()
	if _, err := s.Engine(t, "admin").PutSecret(t.Context(), path, []byte(value)); err != nil {
		t.Fatal(err)
	}
}

// Profile writes the newest version of a profile.
func (s *Stack) Profile(t testing.TB, p sealed.Profile) {
	t.Helper()
	e := s.Engine(t, "admin")
	old, err := e.Profile(t.Context(), p.Level, p.Name, 0)
	if err != nil && !errors.Is(err, sealed.ErrNotFound) {
		t.Fatal(err)
	}
	p.Version = old.Newest
	if _, err := e.WriteProfile(t.Context(), p); err != nil {
		t.Fatal(err)
	}
}

// Key is the specification of a key in the built-in store, of low risk, for
// every agent in agents and every workflow, with proxy delivery to the
// bindings, or env delivery if there are none.
func Key(path string, agents []string, bindings ...sealed.Binding) sealed.KeySpec {
	k := sealed.KeySpec{Source: Source, Ref: sealed.KeyRef{Path: path}, Agents: agents, Risk: sealed.RiskLow, Delivery: sealed.DeliveryProxy, Bindings: bindings}
	if len(bindings) == 0 {
		k.Delivery = sealed.DeliveryEnv
	}
	return k
}

// Profile1 makes a profile of the level workflow that the operator may use,
// for every workflow.
func Profile1(name string, keys map[sealed.KeyName]sealed.KeySpec) sealed.Profile {
	return sealed.Profile{
		Name: sealed.ProfileName(name), Level: sealed.LevelWorkflow, AllowedWorkflows: []string{"*"},
		Requesters: sealed.Requesters{Groups: []string{"sealed-operators"}}, Keys: keys,
	}
}

// Agent defines an agent by the digests of its binaries; without any it is
// recognized by name only.
func (s *Stack) Agent(t testing.TB, name string, binaries ...string) {
	t.Helper()
	s.AgentWithEnv(t, name, nil, binaries...)
}

// AgentWithEnv is Agent with the definition's variables. What is defined so
// already stays as it is: a new version is another agent to a run that waits.
func (s *Stack) AgentWithEnv(t testing.TB, name string, env map[string]string, binaries ...string) {
	t.Helper()
	def := sealed.AgentDefinition{Name: sealed.Name(name), AnyBinary: len(binaries) == 0, AgentEnv: env}
	for _, path := range binaries {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		def.Digests = append(def.Digests, hex.EncodeToString(sum[:]))
	}
	s.agents.Lock()
	defer s.agents.Unlock()
	e := s.Engine(t, "admin")
	old, err := e.Agent(t.Context(), def.Name)
	if err != nil && !errors.Is(err, sealed.ErrNotFound) {
		t.Fatal(err)
	}
	if err == nil && old.AnyBinary == def.AnyBinary && slices.Equal(old.Digests, def.Digests) && maps.Equal(old.AgentEnv, def.AgentEnv) {
		return
	}
	def.Version = old.Version
	if _, err := e.WriteAgent(t.Context(), def); err != nil {
		t.Fatal(err)
	}
}
