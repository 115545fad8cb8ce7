// Package e2e runs whole runs: the real sealedctl against a real Vault and a
// real SPIRE, with agents in real sandboxes. Only the API providers are
// doubles.
package e2e

import (
	"encoding/json"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/test/canary"
	"sealed.dev/sealed/test/harness"
)

func TestMain(m *testing.M) {
	harness.Main(m, harness.Options{Hosts: []string{modelHost}})
}

// A launcher is who starts the sandboxes, and what they are graded.
type launcher struct {
	name, isolation string
	uid             int
}

// launchers are root and another user as root, and the user alone otherwise.
func launchers() []launcher {
	if os.Geteuid() != 0 {
		return []launcher{{"user", sealed.IsolationSameUID, 0}}
	}
	return []launcher{{"root", sealed.IsolationOwnUID, 0}, {"user", sealed.IsolationSameUID, harness.Unprivileged}}
}

// each runs a test for every launcher, beside other tests. At the end of it the
// log verifies, with the record of every run so far.
func each(t *testing.T, f func(t *testing.T, s *harness.Stack, l launcher)) {
	t.Parallel()
	s := harness.Get(t)
	s.Agent(t, "custom")
	for _, l := range launchers() {
		t.Run(l.name, func(t *testing.T) { f(t, s, l) })
	}
	s.Verify(t)
}

func (l launcher) caller() harness.Caller { return harness.Caller{UID: l.uid} }

// newCanary makes a value that must appear nowhere.
func newCanary(t *testing.T, name string) *canary.Canary {
	t.Helper()
	c, err := canary.New(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// bind allows every method that the tests use on every path of a host.
func bind(host string) sealed.Binding {
	return sealed.Binding{Host: host, Methods: []string{"GET", "POST"}, Paths: []string{"/**"}}
}

// plant makes a profile with one key, whose value is a new canary.
func plant(t *testing.T, s *harness.Stack, key sealed.KeyName, bindings ...sealed.Binding) (profile string, c *canary.Canary) {
	t.Helper()
	c = newCanary(t, string(key))
	profile = s.Name("team/p")
	s.Secret(t, profile+"/value", c.Value)
	s.Profile(t, harness.Profile1(profile, map[sealed.KeyName]sealed.KeySpec{
		key: harness.Key(profile+"/value", []string{"custom"}, bindings...),
	}))
	return profile, c
}

// body decodes the body of the only entry of a type.
func body(t *testing.T, entries []vaultclient.LogEntry, typ string) map[string]any {
	t.Helper()
	var found []vaultclient.LogEntry
	for _, e := range entries {
		if e.Type == typ {
			found = append(found, e)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d entries of type %s in %v", len(found), typ, harness.Types(entries))
	}
	var out map[string]any
	if err := json.Unmarshal(found[0].Body, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// wantEntries checks that the types occur in this order, others in between.
func wantEntries(t *testing.T, entries []vaultclient.LogEntry, want ...string) {
	t.Helper()
	have := harness.Types(entries)
	rest := have
	for _, w := range want {
		i := slices.Index(rest, w)
		if i < 0 {
			t.Fatalf("no %s where it belongs:\n%s", w, cmp.Diff(want, have))
		}
		rest = rest[i+1:]
	}
}

// wantClean checks that a canary is in none of the sinks.
func wantClean(t *testing.T, c *canary.Canary, sinks map[string]string) {
	t.Helper()
	for name, text := range sinks {
		for _, hit := range canary.Scan(name, []byte(text), c) {
			t.Error(hit)
		}
	}
}
