package sealed

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const goodProfile = `{
	"name": "team/release", "level": "workflow", "version": 7, "owner": "ann", "tags": ["production"],
	"requesters": {"groups": ["release-eng"], "claims": {"repository": "acme/api"}},
	"allowed_workflows": ["release", "*"], "env": {"LOG_LEVEL": "debug", "log_level": "x"},
	"keys": {"GITHUB_TOKEN": {
		"source": "vault-kv", "ref": {"path": "ci/github", "field": "token", "version": 2}, "agents": ["claude-code"],
		"workflows": ["release"], "tags": ["production"], "risk": "high", "delivery": "proxy",
		"bindings": [{"host": "api.github.com", "methods": ["GET"], "paths": ["/repos/acme/**"]}],
		"ttl": "15m", "max_ttl": "1h"
	}}
}`

func TestParseProfile(t *testing.T) {
	p, err := ParseProfile([]byte(goodProfile))
	if err != nil {
		t.Fatal(err)
	}
	want := Profile{
		Name: "team/release", Level: LevelWorkflow, Version: 7, Owner: "ann", Tags: []string{"production"},
		Requesters:       Requesters{Groups: []string{"release-eng"}, Claims: map[string]string{"repository": "acme/api"}},
		AllowedWorkflows: []string{"release", "*"}, Env: map[string]string{"LOG_LEVEL": "debug", "log_level": "x"},
		Keys: map[KeyName]KeySpec{"GITHUB_TOKEN": {
			Source: "vault-kv", Ref: KeyRef{Path: "ci/github", Field: "token", Version: "2"}, Agents: []string{"claude-code"}, Workflows: []string{"release"}, Tags: []string{"production"},
			Risk: RiskHigh, Delivery: DeliveryProxy, TTL: Duration(15 * time.Minute), MaxTTL: Duration(time.Hour),
			Bindings: []Binding{{Host: "api.github.com", Methods: []string{"GET"}, Paths: []string{"/repos/acme/**"}, Header: "Authorization", Format: "Bearer {}"}},
		}},
	}
	if diff := cmp.Diff(want, p); diff != "" {
		t.Error(diff)
	}
	again, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if p2, err := ParseProfile(again); err != nil || cmp.Diff(p, p2) != "" {
		t.Errorf("comes back as %s, %v", cmp.Diff(p, p2), err)
	}
}

// key returns a profile with one key; extra goes into the key.
func key(extra string) string {
	return `{"name":"p","level":"user","keys":{"TOKEN":{"source":"kv","ref":{"path":"a"}` + extra + `}}}`
}

func TestProfileDefaults(t *testing.T) {
	p, err := ParseProfile([]byte(key(`,"risk":"low","bindings":[{"host":"a.com","methods":["GET"],"paths":["/"]}]`)))
	if err != nil {
		t.Fatal(err)
	}
	k := p.Keys["TOKEN"]
	if k.Delivery != DeliveryProxy || k.TTL.Std() != 15*time.Minute || k.MaxTTL.Std() != time.Hour || len(k.Agents) != 0 || k.AllowWeak || len(p.AllowedWorkflows) != 0 {
		t.Errorf("defaults: %+v", k)
	}
	for _, c := range []struct{ ttl, maxTTL, want string }{{"2h", "", "2h0m0s"}, {"10s", "", "1h0m0s"}, {"10s", "10s", "10s"}, {"", "15m", "15m0s"}} {
		doc := `,"risk":"low","delivery":"env"`
		if c.ttl != "" {
			doc += `,"ttl":"` + c.ttl + `"`
		}
		if c.maxTTL != "" {
			doc += `,"max_ttl":"` + c.maxTTL + `"`
		}
		p, err := ParseProfile([]byte(key(doc)))
		if err != nil || p.Keys["TOKEN"].MaxTTL.Std().String() != c.want {
			t.Errorf("%+v: max_ttl %v, %v", c, p.Keys["TOKEN"].MaxTTL.Std(), err)
		}
	}
}

func TestParseProfileRefuses(t *testing.T) {
	const bind = `,"bindings":[{"host":"a.com","methods":["GET"],"paths":["/"]}]`
	top := func(extra string) string { return `{"name":"p","level":"user","keys":{}` + extra + `}` }
	cases := map[string]struct{ doc, field string }{
		"no name":             {`{"level":"user","keys":{}}`, "profile"},
		"bad name":            {`{"name":"P","level":"user","keys":{}}`, "profile"},
		"no level":            {`{"name":"p","keys":{}}`, "level"},
		"unknown level":       {`{"name":"p","level":"root","keys":{}}`, "level"},
		"unknown field":       {top(`,"admins":[]`), "admins"},
		"field in other case": {top(`,"Env":{}`), "Env"},
		"env twice":           {top(`,"env":{},"env":{}`), "env"},
		"version as text":     {top(`,"version":"7"`), "version"},
		"workflow":            {top(`,"allowed_workflows":["Rel ease"]`), "allowed_workflows"},
		"tag star":            {top(`,"tags":["*"]`), "tags"},
		"key lower case":      {`{"name":"p","level":"user","keys":{"token":{}}}`, "keys.token"},
		"key with newline":    {`{"name":"p","level":"user","keys":{"A\nB":{}}}`, `keys.A\nB`},
		"key twice":           {`{"name":"p","level":"user","keys":{"A":{},"A":{}}}`, "A"},
		"key also a knob":     {`{"name":"p","level":"user","env":{"TOKEN":"x"},"keys":{"TOKEN":{"source":"kv","ref":{"path":"a"}}}}`, "keys.TOKEN"},
		"unknown in key":      {key(`,"value":"x"`), "value"},
		"no source":           {`{"name":"p","level":"user","keys":{"TOKEN":{"ref":{"path":"a"},"risk":"low","delivery":"env"}}}`, "keys.TOKEN.source"},
		"no ref":              {`{"name":"p","level":"user","keys":{"TOKEN":{"source":"kv","risk":"low","delivery":"env"}}}`, "keys.TOKEN.ref"},
		"ref absolute":        {`{"name":"p","level":"user","keys":{"TOKEN":{"source":"kv","ref":{"path":"/sys/raw"}}}}`, "keys.TOKEN.ref"},
		"ref dots":            {`{"name":"p","level":"user","keys":{"TOKEN":{"source":"kv","ref":{"path":"a/../sys"}}}}`, "keys.TOKEN.ref"},
		"ref version":         {`{"name":"p","level":"user","keys":{"TOKEN":{"source":"kv","ref":{"path":"a","version":-1}}}}`, "keys.TOKEN.ref.version"},
		"agent star":          {key(`,"agents":["*"],"risk":"low","delivery":"env"`), "keys.TOKEN.agents"},
		"agent name":          {key(`,"agents":["Claude"],"risk":"low","delivery":"env"`), "keys.TOKEN.agents"},
		"key workflow":        {key(`,"workflows":["../x"],"risk":"low","delivery":"env"`), "keys.TOKEN.workflows"},
		"key tag":             {key(`,"tags":["*"],"risk":"low","delivery":"env"`), "keys.TOKEN.tags"},
		"no risk":             {key(`,"delivery":"env"`), "keys.TOKEN.risk"},
		"unknown risk":        {key(`,"risk":"LOW","delivery":"env"`), "keys.TOKEN.risk"},
		"unknown delivery":    {key(`,"risk":"low","delivery":"file"` + bind), "keys.TOKEN.delivery"},
		"proxy unbound":       {key(`,"risk":"low"`), "keys.TOKEN.bindings"},
		"bad binding":         {key(`,"risk":"low","bindings":[{"host":"a.com","methods":["GET"],"paths":["/"]},{"host":"a.com","methods":["GET"],"paths":["x"]}]`), "keys.TOKEN.bindings[1].paths"},
		"env, bad binding":    {key(`,"risk":"low","delivery":"env","bindings":[{"host":"10.0.0.1","methods":["GET"],"paths":["/"]}]`), "keys.TOKEN.bindings[0].host"},
		"ttl short":           {key(`,"risk":"low","delivery":"env","ttl":"9s"`), "keys.TOKEN.ttl"},
		"ttl over max":        {key(`,"risk":"low","delivery":"env","ttl":"2h","max_ttl":"1h"`), "keys.TOKEN.ttl"},
		"default over max":    {key(`,"risk":"low","delivery":"env","max_ttl":"1m"`), "keys.TOKEN.ttl"},
		"ttl negative":        {key(`,"risk":"low","delivery":"env","ttl":"-1h"`), "duration"},
		"ttl number":          {key(`,"risk":"low","delivery":"env","ttl":900}`), ""},
		"trailing":            {top("") + "{}", ""},
		"not an object":       {`[]`, ""},
		"null":                {`null`, "profile"},
	}
	for _, name := range []string{"LD_PRELOAD", "PATH", "HTTPS_PROXY", "NODE_OPTIONS", "SEALED_TOKEN", "SSL_CERT_FILE", "BASH_ENV", "REQUESTS_CA_BUNDLE"} {
		cases["key "+name] = struct{ doc, field string }{`{"name":"p","level":"user","keys":{"` + name + `":{"source":"kv","ref":{"path":"a"},"risk":"low","delivery":"env"}}}`, "keys." + name}
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p, err := ParseProfile([]byte(c.doc))
			if !errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), "parsing profile: ") {
				t.Fatalf("got %v, want ErrInvalid", err)
			}
			if diff := cmp.Diff(Profile{}, p); diff != "" {
				t.Errorf("half a profile was returned: %s", diff)
			}
			var fe *FieldError
			if c.field != "" && (!errors.As(err, &fe) || fe.Field != c.field) {
				t.Errorf("got %v, want field %s", err, c.field)
			}
		})
	}
}

func TestKnobs(t *testing.T) {
	for _, n := range []string{"LOG_LEVEL", "log_level", "_X", "A", "CI", "TZ", "LANG", "DEBUG", "EDITOR", strings.Repeat("A", 128)} {
		if err := validateKnob(n, "x"); err != nil {
			t.Errorf("%s: %v", n, err)
		}
	}
	bad := []string{"", "1A", "A B", "A=B", "A\n", "A\x00", "A\tB", "A-B", "A.B", "BASH_FUNC_ls%%", "BASH_FUNC_ls()", "É", "A\u200b", strings.Repeat("A", 129),
		"PATH", "Path", "path", "HOME", "IFS", "ENV", "BASH_ENV", "SHELLOPTS", "PROMPT_COMMAND", "PS4", "LD_PRELOAD", "LD_LIBRARY_PATH", "ld_audit", "DYLD_INSERT_LIBRARIES", "GLIBC_TUNABLES", "GCONV_PATH",
		"GODEBUG", "GOTRACEBACK", "SSLKEYLOGFILE", "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_OPTIONS", "NODE_EXTRA_CA_CERTS", "NODE_TLS_REJECT_UNAUTHORIZED", "NODE_PATH",
		"PYTHONSTARTUP", "PYTHONPATH", "PYTHONHOME", "PERL5LIB", "PERL5OPT", "RUBYOPT", "RUBYLIB", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS",
		"CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "GIT_SSL_CAINFO", "GIT_SSH_COMMAND", "GIT_CONFIG_COUNT", "CARGO_HTTP_CAINFO", "PIP_CERT", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
		"HTTP_PROXY", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "NO_PROXY", "FTP_PROXY", "npm_config_https_proxy", "npm_config_registry", "NPM_CONFIG_CAFILE",
		"ANTHROPIC_BASE_URL", "OPENAI_BASE_URL", "SEALED_API", "SEALED_TOKEN", "VAULT_ADDR", "VAULT_TOKEN", "SPIFFE_ENDPOINT_SOCKET", "OTEL_EXPORTER_OTLP_ENDPOINT", "HOSTALIASES", "RES_OPTIONS", "LOCALDOMAIN"}
	for _, n := range bad {
		if err := validateKnob(n, "x"); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %v, want ErrInvalid", n, err)
		}
	}
	const canary = "hunter2-swordfish"
	for _, v := range []string{canary + "\x00", canary + strings.Repeat("x", 4096)} {
		if err := validateKnob("A", v); err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("got %v, want a refusal that does not quote the value", err)
		}
	}
	if err := validateKnob("A", strings.Repeat("x", 4096)); err != nil {
		t.Error(err)
	}
}

func TestRequestersMatch(t *testing.T) {
	both := Requesters{Groups: []string{"a", "b"}, Claims: map[string]string{"repo": "x", "ref": "main"}}
	cases := []struct {
		name   string
		r      Requesters
		groups []string
		claims map[string]string
		want   bool
	}{
		{"zero covers nobody", Requesters{}, []string{"a"}, map[string]string{"repo": "x"}, false},
		{"one group", Requesters{Groups: []string{"a", "b"}}, []string{"b"}, nil, true},
		{"no group", Requesters{Groups: []string{"a"}}, nil, nil, false},
		{"other case", Requesters{Groups: []string{"a"}}, []string{"A"}, nil, false},
		{"all", both, []string{"a"}, map[string]string{"repo": "x", "ref": "main", "more": "y"}, true},
		{"a claim lacks", both, []string{"a"}, map[string]string{"repo": "x"}, false},
		{"a claim differs", both, []string{"a"}, map[string]string{"repo": "x", "ref": "Main"}, false},
		{"group lacks", both, []string{"c"}, map[string]string{"repo": "x", "ref": "main"}, false},
		{"claims alone", Requesters{Claims: map[string]string{"repo": "x"}}, nil, map[string]string{"repo": "x"}, true},
		{"absent is not empty", Requesters{Claims: map[string]string{"repo": ""}}, nil, nil, false},
	}
	for _, c := range cases {
		if got := c.r.Match(c.groups, c.claims); got != c.want {
			t.Errorf("%s: got %v", c.name, got)
		}
	}
}

func TestDelivery(t *testing.T) {
	for _, c := range []struct {
		a, b Delivery
		want bool
	}{{DeliveryProxy, DeliveryEnv, true}, {DeliveryProxy, DeliveryProxy, true}, {DeliveryEnv, DeliveryEnv, true}, {DeliveryEnv, DeliveryProxy, false}, {"file", DeliveryEnv, false}, {DeliveryProxy, "file", false}, {"", "", false}} {
		if got := c.a.Stronger(c.b); got != c.want {
			t.Errorf("%q stronger than %q: %v", c.a, c.b, got)
		}
	}
	if DeliveryProxy.GivesValue() || !DeliveryEnv.GivesValue() || !Delivery("").GivesValue() || !Delivery("file").GivesValue() {
		t.Error("a delivery that is not proxy gives the value")
	}
}

func TestKeySpecDigest(t *testing.T) {
	base := KeySpec{Source: "kv", Ref: KeyRef{Path: "a"}, Risk: RiskLow, Delivery: DeliveryProxy, Bindings: []Binding{binding(nil)}}
	seen := map[Digest]string{base.Digest(): "base"}
	for name, change := range map[string]func(*KeySpec){
		"source": func(k *KeySpec) { k.Source = "x" }, "path": func(k *KeySpec) { k.Ref.Path = "b" }, "field": func(k *KeySpec) { k.Ref.Field = "f" }, "version": func(k *KeySpec) { k.Ref.Version = "1" },
		"agents": func(k *KeySpec) { k.Agents = []string{"a"} }, "risk": func(k *KeySpec) { k.Risk = RiskHigh }, "delivery": func(k *KeySpec) { k.Delivery = DeliveryEnv },
		"bindings": func(k *KeySpec) { k.Bindings = nil }, "ttl": func(k *KeySpec) { k.TTL = 1 }, "max": func(k *KeySpec) { k.MaxTTL = 1 }, "weak": func(k *KeySpec) { k.AllowWeak = true },
		"requesters": func(k *KeySpec) { k.Requesters.Groups = []string{"g"} }, "workflows": func(k *KeySpec) { k.Workflows = []string{"w"} }, "tags": func(k *KeySpec) { k.Tags = []string{"t"} },
	} {
		k := base
		change(&k)
		if other, ok := seen[k.Digest()]; ok {
			t.Errorf("%s has the digest of %s", name, other)
		}
		seen[k.Digest()] = name
	}
}

func FuzzParseProfile(f *testing.F) {
	f.Add([]byte(goodProfile))
	f.Add([]byte(key(`,"risk":"low","delivery":"env"`)))
	f.Add([]byte(`{"name":"p","level":"user","keys":{"A":{},"A":{}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParseProfile(data)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%v is not ErrInvalid", err)
			}
			return
		}
		for name, k := range p.Keys {
			if _, err := ParseKeyName(string(name)); err != nil || k.TTL <= 0 || k.TTL > k.MaxTTL || (k.Delivery == DeliveryProxy && len(k.Bindings) == 0) {
				t.Fatalf("accepted key %q: %+v", name, k)
			}
		}
		// What was accepted is stored, read again, and means the same.
		doc, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		p2, err := ParseProfile(doc)
		if err != nil {
			if len(doc) > MaxProfile {
				return
			}
			t.Fatalf("%v: %s", err, doc)
		}
		if fmt.Sprint(p2.Keys) != fmt.Sprint(p.Keys) {
			t.Fatalf("%v\n%v", p, p2)
		}
	})
}
