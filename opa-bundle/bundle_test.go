package opabundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/bundle"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/harness/require"
)

func TestBuildIsDeterministic(t *testing.T) {
	if !bytes.Equal(buildDefault(t), buildDefault(t)) {
		t.Error("two builds differ")
	}
	var names []string
	for _, f := range mustRead(t, buildDefault(t)) {
		names = append(names, f.name)
	}
	want := []string{".manifest", "sealed/approval/approval.rego", "sealed/authz/authz.rego", "sealed/authz/denials.rego", "sealed/authz/facts.rego", "sealed/directive/directive.rego", "sealed/dispatch/dispatch.rego"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestRef(t *testing.T) {
	k := newKey(t)
	raw := k.sign(t, buildDefault(t))
	b, err := Open(context.Background(), raw, k.options())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	want := sealed.BundleRef{Digest: sealed.Digest(hex.EncodeToString(sum[:])), Sequence: 7}
	if b.Ref() != want || b.Revision() != "test" || !b.Expires().Equal(testManifest().Expires) {
		t.Errorf("got %+v, %q, %s", b.Ref(), b.Revision(), b.Expires())
	}
	// E10: same sequence, other content, other digest: the engine can tell.
	other := open(t, archive(t, append(mustRead(t, buildDefault(t)), file{"sealed/extra/extra.rego", []byte("package sealed.extra\n\nx := 1\n")})...), Limits{})
	if other.Ref().Digest == b.Ref().Digest || other.Ref().Sequence != b.Ref().Sequence {
		t.Errorf("got %+v and %+v", other.Ref(), b.Ref())
	}
}

// What a valid signature does not excuse.
func TestSignedButRefused(t *testing.T) {
	k := newKey(t)
	m := manifestFile(t)
	manifest := func(s string) file { return file{manifestName, []byte(s)} }
	authz := file{"sealed/authz/authz.rego", []byte("package sealed.authz\n\n" + allowRule)}
	approval := file{"sealed/approval/approval.rego", []byte("package sealed.approval\n\n" + allowRule)}
	rego := func(body string) file { return file{"sealed/more.rego", []byte("package sealed.more\n\n" + body)} }
	const meta = `"metadata":{"sequence":1,"expires":"2030-01-01T00:00:00Z"}`
	tests := map[string][]file{
		"no manifest":            {authz, approval},
		"manifest not JSON":      {manifest("{}"), authz, approval},
		"no roots":               {manifest(`{"revision":"","rego_version":1,` + meta + `}`), authz, approval},
		"all roots":              {manifest(`{"revision":"","roots":[""],"rego_version":1,` + meta + `}`), authz, approval},
		"two roots":              {manifest(`{"revision":"","roots":["sealed","system"],"rego_version":1,` + meta + `}`), authz, approval},
		"rego version 0":         {manifest(`{"revision":"","roots":["sealed"],"rego_version":0,` + meta + `}`), authz, approval},
		"file rego versions":     {manifest(`{"revision":"","roots":["sealed"],"rego_version":1,"file_rego_versions":{"/x":0},` + meta + `}`), authz, approval},
		"wasm":                   {manifest(`{"revision":"","roots":["sealed"],"rego_version":1,"wasm":[],` + meta + `}`), authz, approval},
		"no metadata":            {manifest(`{"revision":"","roots":["sealed"],"rego_version":1}`), authz, approval},
		"sequence 0":             {manifest(`{"revision":"","roots":["sealed"],"rego_version":1,"metadata":{"sequence":0,"expires":"2030-01-01T00:00:00Z"}}`), authz, approval},
		"sequence negative":      {manifest(`{"revision":"","roots":["sealed"],"rego_version":1,"metadata":{"sequence":-1,"expires":"2030-01-01T00:00:00Z"}}`), authz, approval},
		"no expiry":              {manifest(`{"revision":"","roots":["sealed"],"rego_version":1,"metadata":{"sequence":1}}`), authz, approval},
		"expiry not a time":      {manifest(`{"revision":"","roots":["sealed"],"rego_version":1,"metadata":{"sequence":1,"expires":"never"}}`), authz, approval},
		"E01 no authz":           {m, approval},
		"E01 no approval":        {m, authz},
		"E01 decision as data":   {m, approval, {"sealed/authz/data.json", []byte(`{"decision":{"effect":"allow","reasons":[],"obligations":{}}}`)}},
		"data beside a rule":     {m, authz, approval, {"sealed/authz/data.json", []byte(`{"decision":{}}`)}},
		"data outside the roots": {m, authz, approval, {"data.json", []byte(`{"system":{}}`)}},
		"data not JSON":          {m, authz, approval, {"sealed/data.json", []byte("a: 1")}},
		"package outside roots":  {m, authz, approval, {"sealed/more.rego", []byte("package system.authz\n\nallow := true\n")}},
		"syntax":                 {m, authz, approval, rego("x := \n")},
		"recursion":              {m, authz, approval, rego("x := y\ny := x\n")},
		"strict: unused local":   {m, authz, approval, rego("x if { y := 1 }\n")},
		"strict: shadows input":  {m, authz, approval, rego("x if { input := 1; input == 1 }\n")},
	}
	for name, files := range tests {
		t.Run(name, func(t *testing.T) {
			signed := k.sealAny(t, files)
			if _, err := Open(context.Background(), signed, k.options()); !errors.Is(err, ErrMalformed) {
				t.Errorf("got %v, want ErrMalformed", err)
			}
		})
	}
	t.Run("control", func(t *testing.T) {
		if _, err := Open(context.Background(), k.seal(t, m, authz, approval, rego("x := 1\n"), file{"data.json", []byte(`{"sealed":{"groups":["a"]}}`)}), k.options()); err != nil {
			t.Error(err)
		}
	})
}

// sealAny signs even data.json files that Sign refuses because they are not JSON.
func (k testKey) sealAny(t testing.TB, files []file) []byte {
	t.Helper()
	if signed, err := Sign(context.Background(), archive(t, files...), k.signer, "k1"); err == nil {
		return signed
	}
	p := jwtPayload{KeyID: "k1"}
	for _, f := range files {
		info, err := fileInfo(f)
		if err != nil { // hash it as OPA reads the YAML "a: 1"
			if info, err = fileInfo(file{f.name, []byte(`{"a":1}`)}); err != nil {
				t.Fatal(err)
			}
		}
		p.Files = append(p.Files, info)
	}
	tok, err := signToken(jwtHeader{Alg: algES256, Kid: "k1"}, p, k.signer)
	if err != nil {
		t.Fatal(err)
	}
	return resign(t, archive(t, files...), map[string]any{"signatures": []string{tok}})
}

// E12, E13: a function that is not on the list cannot be named, called or
// mocked, not even by a signed bundle; and Build says so first.
func TestForbiddenBuiltins(t *testing.T) {
	k := newKey(t)
	rules := map[string]string{
		"http.send":           `x := http.send({"method": "get", "url": "http://169.254.169.254/"})`,
		"net.lookup_ip_addr":  `x := net.lookup_ip_addr("example.test")`,
		"opa.runtime":         `x := opa.runtime()`,
		"rand.intn":           `x := rand.intn("a", 2)`,
		"uuid.rfc4122":        `x := uuid.rfc4122("a")`,
		"time.now_ns":         `x := time.now_ns()`,
		"trace":               `x if trace("a")`,
		"io.jwt.decode":       `x := io.jwt.decode("a")`,
		"json.match_schema":   `x := json.match_schema({}, {})`,
		"numbers.range":       `x := numbers.range(1, 10)`,
		"with on a function":  `x if f(1) with http.send as f` + "\nf(_) := 1",
		"with as replacement": `x if count([1]) == 1 with count as http.send`,
		"inside not":          `x if not http.send({})`,
		"in a comprehension":  `x := [y | y := rand.intn("a", 3)]`,
	}
	for name, rule := range rules {
		t.Run(name, func(t *testing.T) {
			tree := policies(allowRule)
			tree["sealed/more.rego"] = &fstest.MapFile{Data: []byte("package sealed.more\n\n" + rule + "\n")}
			if _, err := Build(context.Background(), tree, testManifest()); !errors.Is(err, ErrCapability) {
				t.Errorf("Build: got %v, want ErrCapability", err)
			}
			files := []file{manifestFile(t)}
			for path, f := range tree {
				files = append(files, file{path, f.Data})
			}
			if _, err := Open(context.Background(), k.seal(t, files...), k.options()); !errors.Is(err, ErrCapability) {
				t.Errorf("Open: got %v, want ErrCapability", err)
			}
			// Control: OPA as it comes compiles the same module.
			m, err := ast.ParseModule("more.rego", string(tree["sealed/more.rego"].Data))
			if err != nil {
				t.Fatal(err)
			}
			if c := ast.NewCompiler(); !strings.Contains(name, "with") && name != "inside not" {
				if c.Compile(map[string]*ast.Module{"more.rego": m}); c.Failed() {
					t.Errorf("control: %v", c.Errors)
				}
			}
		})
	}
}

func TestBuildRefuses(t *testing.T) {
	with := func(name, body string) fstest.MapFS {
		tree := policies(allowRule)
		tree[name] = &fstest.MapFile{Data: []byte(body)}
		return tree
	}
	tests := map[string]struct {
		tree     fstest.MapFS
		manifest Manifest
	}{
		"stray file":     {with("sealed/data.yaml", "a: 1"), testManifest()},
		"backup":         {with("sealed/authz/authz.rego.bak", "x"), testManifest()},
		"no sequence":    {policies(allowRule), Manifest{Expires: now}},
		"no expiry":      {policies(allowRule), Manifest{Sequence: 1}},
		"long revision":  {policies(allowRule), Manifest{Sequence: 1, Expires: now, Revision: strings.Repeat("r", 257)}},
		"no policies":    {fstest.MapFS{}, testManifest()},
		"does not parse": {policies("decision := {"), testManifest()},
	}
	for name, tc := range tests {
		if _, err := Build(context.Background(), tc.tree, tc.manifest); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %v, want ErrMalformed", name, err)
		}
	}
	if _, err := Build(context.Background(), with("sealed/authz/authz_test.rego", "not rego"), testManifest()); err != nil {
		t.Errorf("control: a test is left out: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Build(ctx, policies(allowRule), testManifest()); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// OPA's own reader verifies what Sign made, and Open accepts what OPA signed.
func TestStockReader(t *testing.T) {
	k := newKey(t)
	raw := k.sign(t, buildDefault(t))
	read := func(public string) (bundle.Bundle, error) {
		cfg := bundle.NewVerificationConfig(map[string]*bundle.KeyConfig{"k1": {Key: public, Algorithm: "ES256"}}, "", "", nil)
		return bundle.NewReader(bytes.NewReader(raw)).WithBundleVerificationConfig(cfg).WithProcessAnnotations(true).Read()
	}
	b, err := read(k.public)
	if err != nil || b.Manifest.Revision != "test" || len(b.Modules) != 6 {
		t.Errorf("got %d modules, %v", len(b.Modules), err)
	}
	if _, err := read(newKey(t).public); err == nil {
		t.Error("control: verified by another key")
	}
}

// stockOPA returns the stock opa command: SEALED_OPA, or opa on PATH.
func stockOPA(t *testing.T) string {
	t.Helper()
	name := os.Getenv("SEALED_OPA")
	if name == "" {
		name = "opa"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		require.Missing(t, "opa", "needs the opa command: set SEALED_OPA or put it on PATH")
	}
	return path
}

func TestStockCommand(t *testing.T) {
	opa := stockOPA(t)
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	priv, pub, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, opa, args...).CombinedOutput()
		return string(out), err
	}
	privFile, pubFile := write("key.pem", priv), write("key.pub", pub)
	unsigned := write("unsigned.tar.gz", buildDefault(t))

	// Signed by stock opa, opened by us.
	stock := filepath.Join(dir, "stock.tar.gz")
	if out, err := run("build", "-b", unsigned, "--signing-key", privFile, "--signing-alg", "ES256", "-o", stock); err != nil {
		t.Fatalf("opa build: %v\n%s", err, out)
	}
	raw, err := os.ReadFile(stock)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("opa signs", func(t *testing.T) {
		b, err := Open(context.Background(), raw, Options{Keys: map[string]string{"default": string(pub)}, Limits: patient})
		if err != nil {
			t.Fatal(err)
		}
		if d := b.Decide(context.Background(), sealed.QuestionAuthz, fullInput(), now); d.Effect != sealed.EffectAllow {
			t.Errorf("got %+v", d)
		}
	})

	// Signed by us, verified and evaluated by stock opa.
	k := testKey{signer: parseKey(t, priv), public: string(pub)}
	ours := write("ours.tar.gz", k.sign(t, buildDefault(t)))
	input := write("input.json", mustJSON(t, fullInput()))
	checked := filepath.Join(dir, "checked.tar.gz")
	if out, err := run("build", "-b", ours, "--verification-key", pubFile, "--verification-key-id", "k1", "--signing-alg", "ES256", "-o", checked); err != nil {
		t.Errorf("opa build --verification-key: %v\n%s", err, out)
	}
	wrong := write("wrong.pub", []byte(newKey(t).public))
	if out, err := run("build", "-b", ours, "--verification-key", wrong, "--verification-key-id", "k1", "--signing-alg", "ES256", "-o", checked); err == nil {
		t.Errorf("control: opa verified by another key:\n%s", out)
	}
	if out, err := run("eval", "--fail", "-f", "raw", "-i", input, "-b", ours, "data.sealed.authz.decision.effect"); err != nil || strings.TrimSpace(out) != "allow" {
		t.Errorf("opa eval: %v\n%s", err, out)
	}
}
