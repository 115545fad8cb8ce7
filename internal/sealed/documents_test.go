package sealed

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestParseAgentDefinition(t *testing.T) {
	d := strings.Repeat("a", 64)
	for _, doc := range []string{
		`{"name":"codex","version":0,"any_binary":true}`,
		`{"name":"codex","version":3,"digests":["` + d + `"],"agent_env":{"HTTPS_PROXY":"{proxy}","https_proxy":"{proxy}","NODE_EXTRA_CA_CERTS":"{ca}","X":""}}`,
	} {
		if _, err := ParseAgentDefinition([]byte(doc)); err != nil {
			t.Errorf("%s: %v", doc, err)
		}
	}
	env := func(name, value string) string {
		b, _ := json.Marshal(map[string]any{"name": "codex", "any_binary": true, "agent_env": map[string]string{name: value}})
		return string(b)
	}
	for name, c := range map[string]struct{ doc, field string }{
		"no name":      {`{"any_binary":true}`, "name"},
		"name":         {`{"name":"../codex","any_binary":true}`, "name"},
		"unrecognized": {`{"name":"codex"}`, "digests"},
		"not any":      {`{"name":"codex","any_binary":false,"digests":[]}`, "digests"},
		"digest":       {`{"name":"codex","digests":["` + d + `","` + strings.ToUpper(d) + `"]}`, "digests"},
		"unknown":      {`{"name":"codex","any_binary":true,"path":"/bin/sh"}`, "path"},
		"other case":   {`{"name":"codex","Any_Binary":true}`, "Any_Binary"},
		"twice":        {`{"name":"codex","name":"claude-code","any_binary":true}`, "name"},
		"env twice":    {`{"name":"codex","any_binary":true,"agent_env":{"A":"1","A":"2"}}`, "A"},
		"env empty":    {env("", "x"), "agent_env"},
		"env equals":   {env("A=B", "x"), "agent_env"},
		"env line":     {env("A\nB", "x"), "agent_env"},
		"env NUL":      {env("A", "x\x00y"), "agent_env"},
		"env long":     {env(strings.Repeat("A", 129), "x"), "agent_env"},
		"value long":   {env("A", strings.Repeat("x", 4097)), "agent_env"},
		"loader":       {env("LD_PRELOAD", "x"), "agent_env.LD_PRELOAD"},
		"loader, mac":  {env("DYLD_INSERT_LIBRARIES", "x"), "agent_env.DYLD_INSERT_LIBRARIES"},
		"runtime":      {env("GODEBUG", "x"), "agent_env.GODEBUG"},
	} {
		_, err := ParseAgentDefinition([]byte(c.doc))
		var fe *FieldError
		if !errors.As(err, &fe) || fe.Field != c.field {
			t.Errorf("%s: got %v, want field %s", name, err, c.field)
		}
	}
}

// testLogKey is that of the example in golang.org/x/mod/sumdb/note.
const testLogKey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"

func trustFile(change func(*TrustFile)) []byte {
	t := TrustFile{
		V: 1, Tenant: "acme", TrustDomain: "acme.example", VaultAddr: "https://vault.acme.example:8200", VaultCA: "pem", VaultMount: "sealed", AuthMount: "auth/jwt", AuthRole: "agent", Audience: "vault",
		AnswerKey: base64.StdEncoding.EncodeToString(pub(testKey(1))), LogKey: testLogKey, SPIFFESocket: "/run/spire.sock", UpstreamRoots: "pem",
	}
	if change != nil {
		change(&t)
	}
	b, err := json.Marshal(t)
	if err != nil {
		panic(err)
	}
	return b
}

func TestParseTrustFile(t *testing.T) {
	f, err := ParseTrustFile(trustFile(nil))
	if err != nil {
		t.Fatal(err)
	}
	if k, err := f.AnswerPublicKey(); err != nil || !k.Equal(pub(testKey(1))) {
		t.Errorf("answer key %x, %v", k, err)
	}
	for name, c := range map[string]struct {
		change func(*TrustFile)
		field  string
	}{
		"no version":      {func(f *TrustFile) { f.V = 0 }, "v"},
		"next version":    {func(f *TrustFile) { f.V = 2 }, "v"},
		"tenant":          {func(f *TrustFile) { f.Tenant = "Acme" }, "tenant"},
		"no tenant":       {func(f *TrustFile) { f.Tenant = "" }, "tenant"},
		"no domain":       {func(f *TrustFile) { f.TrustDomain = "" }, "trust_domain"},
		"domain":          {func(f *TrustFile) { f.TrustDomain = "spiffe://acme.example" }, "trust_domain"},
		"plain HTTP":      {func(f *TrustFile) { f.VaultAddr = "http://vault:8200" }, "vault_addr"},
		"no address":      {func(f *TrustFile) { f.VaultAddr = "" }, "vault_addr"},
		"upper case":      {func(f *TrustFile) { f.VaultAddr = "HTTPS://vault" }, "vault_addr"},
		"no CA":           {func(f *TrustFile) { f.VaultCA = "" }, "vault_ca"},
		"no roots":        {func(f *TrustFile) { f.UpstreamRoots = "" }, "vault_ca"},
		"no mount":        {func(f *TrustFile) { f.VaultMount = "" }, "vault_mount"},
		"no auth mount":   {func(f *TrustFile) { f.AuthMount = "" }, "vault_mount"},
		"no role":         {func(f *TrustFile) { f.AuthRole = "" }, "vault_mount"},
		"no audience":     {func(f *TrustFile) { f.Audience = "" }, "vault_mount"},
		"no socket":       {func(f *TrustFile) { f.SPIFFESocket = "" }, "vault_mount"},
		"no answer key":   {func(f *TrustFile) { f.AnswerKey = "" }, "answer_key"},
		"short key":       {func(f *TrustFile) { f.AnswerKey = base64.StdEncoding.EncodeToString(make([]byte, 31)) }, "answer_key"},
		"not base64":      {func(f *TrustFile) { f.AnswerKey = strings.Repeat("*", 44) }, "answer_key"},
		"a private key":   {func(f *TrustFile) { f.AnswerKey = base64.StdEncoding.EncodeToString(testKey(1)) }, "answer_key"},
		"no log key":      {func(f *TrustFile) { f.LogKey = "" }, "log_key"},
		"log key, text":   {func(f *TrustFile) { f.LogKey = "log" }, "log_key"},
		"other log":       {func(f *TrustFile) { f.LogKey = strings.Replace(testLogKey, "Peter", "peter", 1) }, "log_key"},
		"other hash":      {func(f *TrustFile) { f.LogKey = strings.Replace(testLogKey, "c74f20a3", "c74f20a4", 1) }, "log_key"},
		"no hash":         {func(f *TrustFile) { f.LogKey = strings.Replace(testLogKey, "c74f20a3+", "", 1) }, "log_key"},
		"log's signer":    {func(f *TrustFile) { f.LogKey = "PRIVATE+KEY+" + testLogKey }, "log_key"},
		"log key, long":   {func(f *TrustFile) { f.LogKey = testLogKey + "AAAA" }, "log_key"},
		"hex, not base64": {func(f *TrustFile) { f.AnswerKey = strings.Repeat("ab", 32) }, "answer_key"},
	} {
		_, err := ParseTrustFile(trustFile(c.change))
		var fe *FieldError
		if !errors.As(err, &fe) || fe.Field != c.field {
			t.Errorf("%s: got %v, want field %s", name, err, c.field)
		}
	}
	good := string(trustFile(nil))
	for name, doc := range map[string]string{
		"empty": "", "null": "null", "trailing": good + good, "too large": good + strings.Repeat(" ", MaxTrustFile), "unknown": strings.Replace(good, `"v":1`, `"v":1,"insecure":true`, 1),
		"twice": strings.Replace(good, `"v":1`, `"v":1,"answer_key":"x"`, 1), "other case": strings.Replace(good, `"v":1`, `"v":1,"Answer_Key":"x"`, 1),
	} {
		if _, err := ParseTrustFile([]byte(doc)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
}

func TestSourceConfig(t *testing.T) {
	for _, s := range []SourceConfig{{Name: "b", Type: SourceBuiltin}, {Name: "kv", Type: SourceVaultKV, Address: "https://v:8200", Mount: "secret"}, {Name: "d", Type: SourceVaultDynamic, Address: "https://v:8200", Mount: "db"}} {
		if err := s.Validate(); err != nil {
			t.Errorf("%+v: %v", s, err)
		}
		if dynamic := s.Kind() == "dynamic"; dynamic != (s.Type == SourceVaultDynamic) {
			t.Errorf("%s is %s", s.Type, s.Kind())
		}
	}
	for field, list := range map[string][]SourceConfig{
		"name":    {{Type: SourceBuiltin}, {Name: "A", Type: SourceBuiltin}},
		"type":    {{Name: "a"}, {Name: "a", Type: "aws"}, {Name: "a", Type: "Builtin"}},
		"address": {{Name: "a", Type: SourceBuiltin, Address: "https://x"}, {Name: "a", Type: SourceBuiltin, Mount: "x"}, {Name: "a", Type: SourceVaultKV, Mount: "m"}, {Name: "a", Type: SourceVaultKV, Mount: "m", Address: "http://x"}},
		"mount":   {{Name: "a", Type: SourceVaultKV, Address: "https://x"}, {Name: "a", Type: SourceVaultDynamic, Address: "https://x", Mount: "../sys"}},
	} {
		for _, s := range list {
			var fe *FieldError
			if err := s.Validate(); !errors.As(err, &fe) || fe.Field != field {
				t.Errorf("%+v: got %v, want field %s", s, err, field)
			}
		}
	}
}

func FuzzParseAgentDefinition(f *testing.F) {
	f.Add([]byte(`{"name":"codex","any_binary":true,"agent_env":{"A":"{proxy}"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := ParseAgentDefinition(data)
		if err != nil && !errors.Is(err, ErrInvalid) {
			t.Fatalf("%v is not ErrInvalid", err)
		}
		if err == nil && len(a.Digests) == 0 && !a.AnyBinary {
			t.Fatalf("accepted %+v", a)
		}
	})
}

func FuzzParseTrustFile(f *testing.F) {
	f.Add(trustFile(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		tf, err := ParseTrustFile(data)
		if err != nil && !errors.Is(err, ErrInvalid) {
			t.Fatalf("%v is not ErrInvalid", err)
		}
		if _, keyErr := tf.AnswerPublicKey(); err == nil && keyErr != nil {
			t.Fatalf("accepted %+v", tf)
		}
	})
}

func FuzzNames(f *testing.F) {
	for _, s := range []string{"TOKEN", "team/release", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "spiffe://a.b/sealed/tenant/acme/agent/codex", "a..b", "%2f", "\u212a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for kind, g := range grammars() {
			if g.parse(s) == nil && (strings.ContainsAny(s, "%\\ :@#?*\x00\n") || strings.Contains(s, "..") || strings.TrimFunc(s, func(r rune) bool { return r < 0x80 }) != "") {
				t.Fatalf("%s accepts %q", kind, s)
			}
		}
		if _, err := ParseRunID(s); err == nil && len(s) != 26 {
			t.Fatalf("run %q", s)
		}
		if td, tenant, agent, err := ParseAgentSPIFFEID(s); err == nil && s != "spiffe://"+td+AgentSPIFFEPath(tenant, agent) {
			t.Fatalf("%q is taken for %q %q %q", s, td, tenant, agent)
		}
	})
}
