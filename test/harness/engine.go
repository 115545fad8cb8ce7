package harness

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/audit"
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
// approver, approver2 or auditor. "root" has Vault's root token.
func (s *Stack) Engine(t testing.TB, user string) *vaultclient.Engine {
	t.Helper()
	if user == "root" {
		c, err := s.Root()
		if err != nil {
			t.Fatal(err)
		}
		return c.Engine(s.Status.Mount)
	}
	ca, err := os.ReadFile(s.Status.VaultCA)
	if err != nil {
		t.Fatal(err)
	}
	c, err := vaultclient.New(s.Status.VaultAddr, ca, string(s.Token(t, user)))
	if err != nil {
		t.Fatal(err)
	}
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

// AgentWithEnv is Agent with the definition's variables.
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
	e := s.Engine(t, "admin")
	old, err := e.Agent(t.Context(), def.Name)
	if err != nil && !errors.Is(err, sealed.ErrNotFound) {
		t.Fatal(err)
	}
	def.Version = old.Version
	if _, err := e.WriteAgent(t.Context(), def); err != nil {
		t.Fatal(err)
	}
}

// Entries returns the log entries of a run, oldest first, as the engine tells
// them.
func (s *Stack) Entries(t testing.TB, run sealed.RunID) []vaultclient.LogEntry {
	t.Helper()
	e := s.Engine(t, "auditor")
	var out []vaultclient.LogEntry
	for f := (vaultclient.LogFilter{Run: run, Limit: 1000}); ; {
		page, next, err := e.LogEntries(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, page...)
		if next <= f.From {
			return out
		}
		f.From = next
	}
}

// Types returns the types of entries, in order.
func Types(entries []vaultclient.LogEntry) []string {
	var out []string
	for _, e := range entries {
		out = append(out, e.Type)
	}
	return out
}

// A sideCache keeps the side objects that were read before: they do not change,
// and there is one call for each. What they prove is checked against the tree,
// which is read anew.
type sideCache struct {
	audit.Reader
	s *Stack
}

// Side implements audit.Reader.
func (c sideCache) Side(ctx context.Context, seq uint64) (audit.Side, error) {
	c.s.mu.Lock()
	side, ok := c.s.sides[seq]
	c.s.mu.Unlock()
	if ok {
		return side, nil
	}
	side, err := c.Reader.Side(ctx, seq)
	if err == nil {
		c.s.mu.Lock()
		c.s.sides[seq] = side
		c.s.mu.Unlock()
	}
	return side, err
}

// Pull takes the whole log and the records away into a new directory. Side
// objects come from a cache: a test that changes them in Vault's storage, or
// erases them, exports with audit.WriteDir itself.
func (s *Stack) Pull(t testing.TB) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "log")
	e := s.Engine(t, "auditor")
	if err := audit.WriteDir(t.Context(), sideCache{e.LogReader(), s}, dir); err != nil {
		t.Fatal(err)
	}
	head, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	var size uint64
	if lines := strings.SplitN(string(head), "\n", 3); len(lines) == 3 {
		if _, err := fmt.Sscanf(lines[1], "%d", &size); err != nil {
			t.Fatal(err)
		}
	}
	f := vaultclient.LogFilter{Type: audit.TypeFinished, Limit: 1000}
	for f.From < size {
		page, next, err := e.LogEntries(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range page {
			if x.Seq < size {
				s.pullRecord(t, e, dir, x.Run)
			}
		}
		if next <= f.From {
			break
		}
		f.From = next
	}
	return dir
}

func (s *Stack) pullRecord(t testing.TB, e *vaultclient.Engine, dir string, run sealed.RunID) {
	t.Helper()
	record, err := e.Record(t.Context(), run)
	if err == nil {
		err = audit.WriteRecord(dir, string(run), record)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// LogKey is the log's verifier key, from the trust file.
func (s *Stack) LogKey(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(s.Status.TrustFile)
	if err != nil {
		t.Fatal(err)
	}
	trust, err := sealed.ParseTrustFile(b)
	if err != nil {
		t.Fatal(err)
	}
	return trust.LogKey
}

// Verify pulls the log and verifies it and every record from the files alone.
func (s *Stack) Verify(t testing.TB) audit.Report {
	t.Helper()
	r, err := audit.VerifyDir(s.Pull(t), audit.Options{VerifierKey: s.LogKey(t)})
	if err != nil {
		t.Fatalf("verifying: %v", err)
	}
	return r
}
