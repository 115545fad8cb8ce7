package install

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/sealed"
	spireattestor "sealed.dev/sealed/spire-attestor"
)

func TestParseMount(t *testing.T) {
	for mount, ok := range map[string]bool{
		"sealed": true, "tenants/beta/sealed": true, "a-b/c_d": true, "a/b/c/d/e": true,
		"": false, "/sealed": false, "sealed/": false, "a//b": false, "a/../b": false, "A": false, "a.b": false, "-a": false,
		"sys": false, "sys/x": false, "auth/x": false, "identity/x": false, "cubbyhole": false, "a/b/c/d/e/f": false,
		"a*": false, "a+": false, "a b": false, "a\"b": false, "a{{b": false, "a\nb": false,
	} {
		if _, err := ParseMount(mount); (err == nil) != ok || err != nil && !errors.Is(err, sealed.ErrInvalid) {
			t.Errorf("%q: %v", mount, err)
		}
	}
}

// TestPolicyNames: two mounts never share a policy, whose text names one of them.
func TestPolicyNames(t *testing.T) {
	seen := map[string]string{}
	for _, mount := range []string{"sealed", "a/sealed", "a-sealed", "a_sealed", "a/b/sealed", "a/b-sealed", "a-b/sealed", "sealed-agent", "sealed/agent"} {
		all, err := RenderPolicies(mount)
		if err != nil || len(all) != 9 {
			t.Fatalf("%s: %d policies, %v", mount, len(all), err)
		}
		for name, text := range all {
			if other, twice := seen[name]; twice {
				t.Errorf("%s is a policy of %s and %s", name, other, mount)
			}
			seen[name] = mount
			if !strings.HasPrefix(text, mark(mount)) || strings.Contains(strings.ReplaceAll(text, "{{identity.entity.id}}", "Vault's own"), "{{") {
				t.Errorf("%s: %s", name, text)
			}
		}
	}
}

func TestDrift(t *testing.T) {
	got := map[string]any{"n": json.Number("5"), "list": []any{"a"}, "m": map[string]any{"sub": "x"}, "b": true, "pem": "x\n", "extra": 1}
	for _, tt := range []struct {
		want map[string]any
		off  []string
	}{
		{map[string]any{"n": 5, "list": []string{"a"}, "m": map[string]any{"sub": "x"}, "b": true, "pem": "x", "none": []string{}, "zero": 0, "no": false}, nil},
		{map[string]any{"n": 6, "list": []string{"a", "b"}, "b": false, "extra": 0}, []string{"b", "extra", "list", "n"}},
		{map[string]any{"m": map[string]any{"sub": "*"}, "pem": ""}, []string{"m", "pem"}},
	} {
		if diff := cmp.Diff(tt.off, drift(tt.want, got)); diff != "" {
			t.Error(diff)
		}
	}
}

func spireTarget() Target {
	return Target{Tenant: "acme", TrustDomain: "corp.example", SPIRE: &SPIRE{
		Agents: []sealed.Name{"claude-code", "custom"}, Launchers: []int{0, 1000}, InitSHA256: strings.Repeat("ab", 32),
		Attestor: "/usr/libexec/sealed/attestor", AttestorSHA256: strings.Repeat("cd", 32),
		RegistrySocket: "/run/registry.sock", TrustFile: "/etc/sealed/trust.json", RunUIDs: "700000-799999",
	}}
}

// TestAgentConf: the attestor understands what is printed for it.
func TestAgentConf(t *testing.T) {
	text, err := AgentConf(spireTarget())
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(text, "plugin_data {")
	body, _, ok := strings.Cut(rest, "\n    }\n}")
	if !ok {
		t.Fatalf("no plugin_data in %s", text)
	}
	cfg, err := spireattestor.ParseConfig(body)
	if err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	if cfg.TrustFile != "/etc/sealed/trust.json" || len(cfg.Launchers) != 2 || cfg.Launchers[1000].Tenant != "acme" || len(cfg.Launchers[0].Agents) != 2 {
		t.Errorf("%+v", cfg)
	}
	if !strings.Contains(text, `plugin_checksum = "`+strings.Repeat("cd", 32)) {
		t.Errorf("the attestor is not pinned: %s", text)
	}
	bad := spireTarget()
	bad.SPIRE.TrustFile = "/etc/${x}"
	if _, err := AgentConf(bad); err == nil {
		t.Error("an interpolation is printed")
	}
}

func TestEntryCommands(t *testing.T) {
	out, err := EntryCommands(spireTarget())
	if err != nil || len(out) != 4 {
		t.Fatalf("%v, %v", out, err)
	}
	if want := "spire-server entry create -parentID '<parent>' -spiffeID spiffe://corp.example/sealed/tenant/acme/agent/claude-code -dns own-uid.isolation.sealed.internal"; !strings.HasPrefix(out[0], want) {
		t.Errorf("%s", out[0])
	}
	bad := spireTarget()
	bad.SPIRE.Parents = []string{"spiffe://x/y'; rm -rf /"}
	if _, err := EntryCommands(bad); !errors.Is(err, sealed.ErrInvalid) {
		t.Errorf("a quote in a SPIFFE ID: %v", err)
	}
}

// TestStepReadsBack: what was applied and does not read back as wanted is an error,
// and what was applied by somebody else meanwhile is none.
func TestStepReadsBack(t *testing.T) {
	there := false
	s := step{name: "x", what: "x", look: func(context.Context) (found, error) {
		if there {
			return same("")
		}
		return absent("")
	}}
	s.apply = func(context.Context) error { return nil }
	job := &Job{steps: []step{s}}
	var stopped *StepError
	if err := job.Apply(t.Context(), nil); !errors.As(err, &stopped) || !errors.Is(err, sealed.ErrConflict) {
		t.Errorf("a change that was swallowed: %v", err)
	}
	job.steps[0].apply = func(context.Context) error { there = true; return sealed.ErrUnavailable }
	if err := job.Apply(t.Context(), nil); err != nil {
		t.Errorf("the answer was lost, but it is there: %v", err)
	}
	if err := job.Skip("y"); !errors.Is(err, sealed.ErrInvalid) {
		t.Errorf("skipping what is not there: %v", err)
	}
}
