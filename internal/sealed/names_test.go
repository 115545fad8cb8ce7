package sealed

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
)

// grammar says which byte may be first and which may follow.
type grammar struct {
	parse       func(string) error
	first, rest string
	pad         string // a valid name of one character
	most        int
}

const (
	upper, lower, digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz", "0123456789"
)

func grammars() map[string]grammar {
	return map[string]grammar{
		"key":     {func(s string) error { _, err := ParseKeyName(s); return err }, upper, upper + digits + "_", "A", 64},
		"name":    {func(s string) error { _, err := ParseName("x", s); return err }, lower + digits, lower + digits + "._-", "a", 64},
		"profile": {func(s string) error { _, err := ParseProfileName(s); return err }, lower + digits, lower + digits + "._-", "a", 64},
	}
}

// Every code point up to U+FFFF at the first and at a later place, every single
// byte, and every length around the limit (E14).
func TestNameGrammars(t *testing.T) {
	for kind, g := range grammars() {
		t.Run(kind, func(t *testing.T) {
			check := func(s string, want bool) {
				t.Helper()
				err := g.parse(s)
				if (err == nil) != want {
					t.Errorf("%q: got %v, want accepted %v", s, err, want)
				}
				if err != nil && !errors.Is(err, ErrInvalid) {
					t.Errorf("%q: %v is not ErrInvalid", s, err)
				}
			}
			for r := rune(0); r <= 0xffff; r++ {
				check(string(r), strings.ContainsRune(g.first, r) && r < 0x80)
				if s := g.pad + string(r) + g.pad; r != '/' {
					check(s, strings.ContainsRune(g.rest, r) && r < 0x80)
				}
			}
			for b := 0x80; b < 0x100; b++ {
				check(string([]byte{byte(b)}), false)
				check(g.pad+string([]byte{byte(b)}), false)
			}
			check("", false)
			check(strings.Repeat(g.pad, g.most), true)
			check(strings.Repeat(g.pad, g.most+1), false)
		})
	}
}

// Spellings that another reader could take for the same name (E14).
func TestNamesHaveOneSpelling(t *testing.T) {
	cases := map[string][]string{
		"key": {"github_token", "GitHub_Token", "GITHUB_TOKEN ", " GITHUB_TOKEN", "GITHUB_TOKEN\n", "GITHUB_TOKEN\r\n", "GITHUB_TOKEN\x00", "GITHUB%5fTOKEN", "GITHUB%2fTOKEN",
			"../GITHUB_TOKEN", "A/B", "A.B", "A-B", "1A", "_A", "GITHUB\u200bTOKEN", "G\u0130THUB", "CAF\u00c9", "CAFE\u0301", "\u0410PI", "\uff21PI", "\u212aEY", "A\u202eB", "A\ufeff"},
		"name": {"Acme", "ACME", "acme ", " acme", "acme\n", "acme\x00", "acme%2f", "%61cme", "..", "a..b", "../acme", "acme/..", "a/b", "a\\b", ".acme", "-acme", "_acme",
			"caf\u00e9", "cafe\u0301", "\u0430cme", "\uff41cme", "acm\u212a", "acme\u200b", "ac\u00adme"},
		"profile": {"", "/", "a/", "/a", "a//b", "a/../b", "a/./b", "a/b/c/d/e", "Team/release", "team/Release", "team%2frelease", "team\\release", "team/release ", "team/release\n", "team /release",
			"team/\u0440elease", "team/release#KEY", "team/*"},
	}
	for kind, bad := range cases {
		for _, s := range bad {
			if grammars()[kind].parse(s) == nil {
				t.Errorf("%s %q was accepted", kind, s)
			}
		}
	}
	for _, s := range []string{"a", "team/release", "a/b/c/d", "0/1", "a.b/c-d/e_f"} {
		if got, err := ParseProfileName(s); err != nil || string(got) != s {
			t.Errorf("ParseProfileName(%q) = %q, %v", s, got, err)
		}
	}
	if got, err := ParseKeyName("GITHUB_TOKEN"); err != nil || got != "GITHUB_TOKEN" {
		t.Errorf("ParseKeyName = %q, %v", got, err)
	}
	var fe *FieldError
	if _, err := ParseName("tenant", "X"); !errors.As(err, &fe) || fe.Field != "tenant" {
		t.Errorf("ParseName doesn't name its field: %v", err)
	}
}

func TestRunID(t *testing.T) {
	const good = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
	if got, err := ParseRunID(good); err != nil || got != good {
		t.Fatalf("ParseRunID = %q, %v", got, err)
	}
	bad := []string{"", strings.ToLower(good), good + " ", " " + good, good + "\n", good[:25], good + "A", good[:25] + "\x00", "8ZZZZZZZZZZZZZZZZZZZZZZZZZ",
		"O" + good[1:], "I" + good[1:], "0U" + good[2:], "0l" + good[2:], "../" + good[3:], "%2f" + good[3:], "\u0430" + good[2:], "01ARZ3NDEK-SV4RRFFQ69G5FAV"}
	for _, s := range bad {
		if _, err := ParseRunID(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %v, want ErrInvalid", s, err)
		}
	}
	for i := range good { // every byte in every place: Crockford's alphabet and nothing else
		for b := range 256 {
			s := good[:i] + string([]byte{byte(b)}) + good[i+1:]
			_, err := ParseRunID(s)
			want := strings.IndexByte("0123456789ABCDEFGHJKMNPQRSTVWXYZ", byte(b)) >= 0 && (i > 0 || b < '8')
			if (err == nil) != want {
				t.Fatalf("%q: got %v, want accepted %v", s, err, want)
			}
		}
	}
}

func TestNewULID(t *testing.T) {
	at := time.UnixMilli(1_700_000_000_000)
	one, err := NewULID(at, bytes.NewReader(make([]byte, 10)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseRunID(one); err != nil {
		t.Errorf("%q doesn't parse: %v", one, err)
	}
	again, _ := NewULID(at, bytes.NewReader(make([]byte, 10)))
	if one != again {
		t.Errorf("same clock and randomness gave %s and %s", one, again)
	}
	if x, _ := NewULID(at, nil); x == one {
		t.Error("nil randomness is not random")
	}
	if _, err := NewULID(at, bytes.NewReader(nil)); err == nil {
		t.Error("short randomness was accepted")
	}
}

// D06: no prefix comparison, no decoding, no folding.
func TestParseAgentSPIFFEID(t *testing.T) {
	for _, td := range []string{"acme.example", "a", "embedded.sealed.invalid", "0_x-y.z", strings.Repeat("a", 255)} {
		id := "spiffe://" + td + AgentSPIFFEPath("health", "claude-code")
		gotTD, tenant, agent, err := ParseAgentSPIFFEID(id)
		if err != nil || gotTD != td || tenant != "health" || agent != "claude-code" {
			t.Errorf("%q: %q %q %q %v", id, gotTD, tenant, agent, err)
		}
	}
	_, other, _, err := ParseAgentSPIFFEID("spiffe://acme.example/sealed/tenant/healthcare/agent/codex")
	if err != nil || other == "health" {
		t.Errorf("healthcare was taken for %q, %v", other, err)
	}
	const p = "spiffe://acme.example"
	bad := []string{
		"", "spiffe://", p, p + "/", p + "/sealed/tenant/health", p + "/sealed/tenant/health/agent", p + "/sealed/tenant/health/agent/", p + "/sealed/tenant//agent/codex",
		p + "/sealed/tenant/health/agent/codex/", p + "/sealed/tenant/health/agent/codex/x", p + "//sealed/tenant/health/agent/codex", p + "/sealed//tenant/health/agent/codex",
		p + "/sealed/tenant/../agent/codex", p + "/sealed/tenant/health/agent/..", p + "/x/../sealed/tenant/health/agent/codex", p + "/sealed/tenant/./agent/codex",
		p + "/sealed/tenant/%2e%2e/agent/codex", p + "/sealed/tenant/he%61lth/agent/codex", p + "/sealed/tenant/health%2fagent/agent/codex", p + "/sealed%2ftenant/health/agent/codex",
		p + "/sealed/tenant/Health/agent/codex", p + "/sealed/tenant/health/agent/CODEX", p + "/Sealed/tenant/health/agent/codex", p + "/sealed/Tenant/health/agent/codex", p + "/sealed/tenant/health/Agent/codex",
		p + "/sealed/tenant/h\u0435alth/agent/codex", p + "/sealed/tenant/health/agent/cod\u0435x", p + "/sealed/tenant/he\u0301alth/agent/codex",
		p + "/sealed/tenant/health/worker/codex", p + "/sealed/worker/health/agent/codex", p + "/evil/tenant/health/agent/codex",
		p + "/sealed/tenant/health/agent/codex?x", p + "/sealed/tenant/health/agent/codex#x", p + "/sealed/tenant/health/agent/codex\x00", p + "/sealed/tenant/health/agent/codex\n",
		"SPIFFE://acme.example/sealed/tenant/health/agent/codex", "http://acme.example/sealed/tenant/health/agent/codex", "acme.example/sealed/tenant/health/agent/codex",
		" spiffe://acme.example/sealed/tenant/health/agent/codex", "spiffe:///sealed/tenant/health/agent/codex",
		"spiffe://ACME.example/sealed/tenant/health/agent/codex", "spiffe://acme.ex\u0430mple/sealed/tenant/health/agent/codex", "spiffe://acme%2eexample/sealed/tenant/health/agent/codex",
		"spiffe://root@acme.example/sealed/tenant/health/agent/codex", "spiffe://acme.example:8443/sealed/tenant/health/agent/codex", "spiffe://acme example/sealed/tenant/health/agent/codex",
		"spiffe://" + strings.Repeat("a", 256) + "/sealed/tenant/health/agent/codex",
	}
	for _, id := range bad {
		if _, _, _, err := ParseAgentSPIFFEID(id); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %v, want ErrInvalid", id, err)
		}
	}
	t.Run("negative control: a prefix comparison is fooled", func(t *testing.T) {
		prefix := func(id string) bool { return strings.HasPrefix(id, p+"/sealed/tenant/health") }
		if !prefix(p + "/sealed/tenant/healthcare/agent/codex") {
			t.Error("the attack does not work without the control")
		}
	})
}
