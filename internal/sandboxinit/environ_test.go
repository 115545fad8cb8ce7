package sandboxinit

import (
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/sealed"
)

// variables turns an environment into a map and refuses doubles: programs
// disagree on which of two counts.
func variables(t *testing.T, environ []string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, kv := range environ {
		name, v, ok := strings.Cut(kv, "=")
		if _, double := out[name]; double || !ok {
			t.Errorf("variable %q is double or malformed", name)
		}
		out[name] = v
	}
	return out
}

func bareEnvironment() environment {
	return environment{proxy: "http://127.0.0.1:4711", token: "agent-token", answer: sealed.ClaimAnswer{Run: "01JAAAAAAAAAAAAAAAAAAAAAAA"}}
}

// What init decides is not for a knob, an agent definition or a key to set.
func TestInitDecidesItsOwnVariables(t *testing.T) {
	fixed := variables(t, bareEnvironment().build())
	for _, name := range []string{
		"PATH", "HOME", "TMPDIR", "USER", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy",
		"SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO",
		"SEALED_API", "SEALED_TOKEN", "SEALED_RUN",
	} {
		if fixed[name] == "" {
			t.Errorf("%s is not set", name)
		}
		for who, e := range map[string]environment{
			"knob":             {answer: sealed.ClaimAnswer{Env: map[string]string{name: "evil"}}},
			"agent definition": {answer: sealed.ClaimAnswer{AgentEnv: map[string]string{name: "evil"}}},
			"placeholder":      {placeholders: map[sealed.KeyName]string{sealed.KeyName(name): "evil"}},
			"value":            {values: []string{name + "=evil"}},
		} {
			bare := bareEnvironment()
			e.proxy, e.token, e.answer.Run = bare.proxy, bare.token, bare.answer.Run
			if diff := cmp.Diff(fixed, variables(t, e.build())); diff != "" {
				t.Errorf("a %s changed the environment:\n%s", who, diff)
			}
		}
	}
}

func TestEnvironment(t *testing.T) {
	e := bareEnvironment()
	fixed := variables(t, e.build())
	e.term = true
	e.placeholders = map[sealed.KeyName]string{"API_KEY": "sealed-aa", "API_KEY_2": "sealed-bb"}
	e.answer.Env = map[string]string{"LOG_LEVEL": "debug", "LANG": "de_DE.UTF-8", "RAW": "{proxy} {placeholder:API_KEY}"}
	e.answer.AgentEnv = map[string]string{
		"BASE": "{base:API_KEY}", "CA": "{ca}", "P": "{proxy}/x", "BOTH": "{placeholder:API_KEY} {placeholder:API_KEY_2}",
		"UNKNOWN": "{placeholder:NOPE}{base:NOPE}", "DIRECT": "{placeholder:DIRECT}",
	}
	e.values = []string{"DIRECT=a=b"}
	want := maps.Clone(fixed)
	maps.Copy(want, map[string]string{
		"TERM": "xterm-256color", "LOG_LEVEL": "debug", "LANG": "de_DE.UTF-8", "RAW": "{proxy} {placeholder:API_KEY}",
		"API_KEY": "sealed-aa", "API_KEY_2": "sealed-bb", "BASE": "http://127.0.0.1:4711/b/API_KEY", "CA": caFile,
		"P": "http://127.0.0.1:4711/x", "BOTH": "sealed-aa sealed-bb", "UNKNOWN": "{placeholder:NOPE}{base:NOPE}", "DIRECT": "a=b",
	})
	if diff := cmp.Diff(want, variables(t, e.build())); diff != "" {
		t.Error(diff)
	}
}

func TestPlaceholdersDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		p, err := newPlaceholder()
		if err != nil || !strings.HasPrefix(p, "sealed-") || len(p) != 47 || seen[p] {
			t.Fatalf("placeholder %q: %v, seen before: %v", p, err, seen[p])
		}
		seen[p] = true
	}
}
