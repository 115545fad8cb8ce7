package attack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"sealed.dev/sealed/internal/devstack"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	opabundle "sealed.dev/sealed/opa-bundle"
	"sealed.dev/sealed/rego"
	"sealed.dev/sealed/test/harness"
)

// policyKey is the key that the stack signs policies with.
func (w *world) policyKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(w.Status.Dir, "private", "policy-key.pem"))
	harness.Must(t, err)
	return parseKey(t, b)
}

func parseKey(t *testing.T, text []byte) *ecdsa.PrivateKey {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatal("no PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	harness.Must(t, err)
	return key.(*ecdsa.PrivateKey)
}

func (w *world) policy(t *testing.T) vaultclient.PolicyStatus {
	t.Helper()
	st, err := w.Engine(t, "admin").PolicyStatus(t.Context())
	harness.Must(t, err)
	return st
}

// unsigned builds a bundle of fsys.
func unsigned(t *testing.T, fsys fs.FS, sequence uint64, expires time.Time) []byte {
	t.Helper()
	raw, err := opabundle.Build(t.Context(), fsys, opabundle.Manifest{Revision: "attack", Sequence: sequence, Expires: expires})
	harness.Must(t, err)
	return raw
}

// next puts a policy in force, and the default one at the end of the test.
func (w *world) next(t *testing.T, fsys fs.FS) {
	t.Helper()
	w.upload(t, fsys)
	t.Cleanup(func() { w.upload(t, rego.FS()) })
}

func (w *world) upload(t *testing.T, fsys fs.FS) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context()) // which has ended in a clean-up
	e := w.Engine(t, "admin")
	st, err := e.PolicyStatus(ctx)
	harness.Must(t, err)
	raw, err := opabundle.Build(ctx, fsys, opabundle.Manifest{Revision: "attack", Sequence: st.Sequence + 1, Expires: time.Now().Add(24 * time.Hour)})
	harness.Must(t, err)
	raw, err = opabundle.Sign(ctx, raw, w.policyKey(t), devstack.PolicyKeyID)
	harness.Must(t, err)
	_, err = e.UploadPolicy(ctx, raw)
	harness.Must(t, err)
}

// E06, E07, E08, E10: bundles that nobody who may has signed, or that are
// older. Each is refused, the old one stays, and the log says so.
func TestE06E07E10Bundles(t *testing.T) {
	w := get(t)
	key := w.policyKey(t)
	_, foreign := newKey(t)
	before := w.policy(t)
	later := time.Now().Add(time.Hour)
	good := unsigned(t, rego.FS(), before.Sequence+1, later)
	sign := func(raw []byte, key *ecdsa.PrivateKey, id string) []byte {
		out, err := opabundle.Sign(t.Context(), raw, key, id)
		harness.Must(t, err)
		return out
	}
	signed := sign(good, key, devstack.PolicyKeyID)
	for name, raw := range map[string][]byte{
		"E06 unsigned":                  good,
		"E07 signature stripped":        without(t, signed, ".signatures.json"),
		"E07 signature emptied":         replace(t, signed, ".signatures.json", func([]byte) []byte { return []byte(`{"signatures":[]}`) }),
		"E08 another key":               sign(good, foreign, devstack.PolicyKeyID),
		"E08 another key, its own name": sign(good, foreign, "evil"),
		"E08 the key under no known id": sign(good, key, "dev-2"),
		"E10 an older sequence":         sign(unsigned(t, rego.FS(), max(before.Sequence, 2)-1, later), key, devstack.PolicyKeyID),
		"E10 the same sequence":         sign(unsigned(t, rego.FS(), before.Sequence, later), key, devstack.PolicyKeyID),
		"E11 expired":                   sign(unsigned(t, rego.FS(), before.Sequence+1, time.Now().Add(-time.Minute)), key, devstack.PolicyKeyID),
		"E16 changed after signing": replace(t, signed, "sealed/authz/authz.rego", func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"effect": "deny"`), []byte(`"effect": "allow"`), 1)
		}),
		"a file more":  appended(t, signed, "sealed/authz/more.rego", []byte("package sealed.authz\n")),
		"not a bundle": []byte("bundle"),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := w.Engine(t, "admin").UploadPolicy(t.Context(), raw); err == nil {
				t.Error("it is in force")
			}
			if st := w.policy(t); st.Digest != before.Digest || st.Sequence != before.Sequence {
				t.Errorf("now in force: %+v, before %+v", st, before)
			}
		})
	}
	if !w.logged(t, "bundle.rejected") {
		t.Error("the log does not know of a refusal")
	}
	t.Run("control: signed and newer", func(t *testing.T) {
		st, err := w.Engine(t, "admin").UploadPolicy(t.Context(), signed)
		if err != nil || st.Sequence != before.Sequence+1 {
			t.Errorf("%+v, %v", st, err)
		}
	})
}

func newKey(t *testing.T) (public string, key *ecdsa.PrivateKey) {
	t.Helper()
	private, pub, err := opabundle.GenerateKey()
	harness.Must(t, err)
	return string(pub), parseKey(t, private)
}

// E01, E02: policies that say nothing, contradict themselves or say something
// of another shape. Signed and all, they allow nothing.
func TestE01PolicySaysNothing(t *testing.T) {
	w := get(t)
	const approval = "package sealed.approval\n\ndecision := {\"effect\": \"deny\", \"reasons\": [], \"obligations\": {}}\n"
	for name, authz := range map[string]string{
		"E01 undefined":          "package sealed.authz\n\ndecision := {\"effect\": \"allow\", \"reasons\": [], \"obligations\": {}} if input.tenant == \"nobody\"\n",
		"E01 another shape":      "package sealed.authz\n\ndecision := \"allow\"\n",
		"E01 an unknown effect":  "package sealed.authz\n\ndecision := {\"effect\": \"permit\", \"reasons\": [], \"obligations\": {}}\n",
		"E01 an unknown field":   "package sealed.authz\n\ndecision := {\"effect\": \"allow\", \"reasons\": [], \"obligations\": {\"sudo\": true}}\n",
		"E02 conflicting rules":  "package sealed.authz\n\ndecision := {\"effect\": \"allow\", \"reasons\": [], \"obligations\": {}} if input.run.mode == \"jit\"\n\ndecision := {\"effect\": \"deny\", \"reasons\": [], \"obligations\": {}} if input.agent.name == \"custom\"\n",
		"E03 an error in a not":  "package sealed.authz\n\ndecision := {\"effect\": \"allow\", \"reasons\": [], \"obligations\": {}} if not _bad\n\n_bad if to_number(input.tenant) == 1\n",
		"E01 an empty decision":  "package sealed.authz\n\ndecision := {}\n",
		"E01 more than one kind": "package sealed.authz\n\ndecision := {\"effect\": [\"allow\"], \"reasons\": [], \"obligations\": {}}\n",
	} {
		t.Run(name, func(t *testing.T) {
			profile, c := w.profile(t)
			w.next(t, fstest.MapFS{"sealed/authz/authz.rego": {Data: []byte(authz)}, "sealed/approval/approval.rego": {Data: []byte(approval)}})
			r := w.Ctl(t, harness.Caller{}, shell(profile, "echo $KEY", "--no-workspace")...).Want(t, sealed.ExitDenied)
			if strings.Contains(r.Stdout+r.Stderr, c.Value) {
				t.Error("the value got out")
			}
		})
	}
	t.Run("control: a policy that says yes", func(t *testing.T) {
		profile, _ := w.profile(t)
		w.next(t, fstest.MapFS{
			"sealed/authz/authz.rego":       {Data: []byte("package sealed.authz\n\ndecision := {\"effect\": \"allow\", \"reasons\": [], \"obligations\": {}}\n")},
			"sealed/approval/approval.rego": {Data: []byte(approval)},
		})
		r := w.Ctl(t, harness.Caller{}, shell(profile, "echo got ${#KEY}", "--no-workspace")...).Want(t, 0)
		if r.Stdout != "got 45\n" {
			t.Errorf("got %q", r.Stdout)
		}
	})
}

// E17: after the yes of a person the policy changes. The yes is void: it was
// given under another policy.
func TestE17PolicyChangesAfterApproval(t *testing.T) {
	w := get(t)
	w.next(t, rego.FS()) // so that the default comes back at the end
	for _, changed := range []bool{true, false} {
		name := map[bool]string{true: "changed", false: "control: unchanged"}[changed]
		t.Run(name, func(t *testing.T) {
			g, _ := w.asker(t, sealed.RiskHigh)
			id := w.pending(t, g, "idem-000000000001")
			w.vote(t, "approver", id, nil)
			if changed {
				w.upload(t, rego.FS())
			}
			_, err := g.Creds(t.Context(), "KEY", "idem-000000000002")
			if changed == (err == nil) {
				t.Errorf("issue: %v", err)
			}
			if changed && approvalID(err) == id {
				t.Error("the old approval is asked for again")
			}
		})
	}
}

// ---- archives

func files(t *testing.T, raw []byte) (names []string, data map[string][]byte) {
	t.Helper()
	gz, err := gzip.NewReader(bytes.NewReader(raw))
	harness.Must(t, err)
	data = map[string][]byte{}
	for r := tar.NewReader(gz); ; {
		h, err := r.Next()
		if err == io.EOF {
			return names, data
		}
		harness.Must(t, err)
		b, err := io.ReadAll(r)
		harness.Must(t, err)
		names = append(names, h.Name)
		data[h.Name] = b
	}
}

func archive(t *testing.T, names []string, data map[string][]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	gz := gzip.NewWriter(&out)
	tw := tar.NewWriter(gz)
	for _, n := range names {
		harness.Must(t, tw.WriteHeader(&tar.Header{Name: n, Mode: 0o644, Size: int64(len(data[n])), Typeflag: tar.TypeReg}))
		_, err := tw.Write(data[n])
		harness.Must(t, err)
	}
	harness.Must(t, tw.Close())
	harness.Must(t, gz.Close())
	return out.Bytes()
}

// find returns the name that an archive has for a file.
func find(t *testing.T, names []string, name string) int {
	t.Helper()
	for i, n := range names {
		if strings.TrimPrefix(n, "/") == name {
			return i
		}
	}
	t.Fatalf("no %s in %q", name, names)
	return 0
}

func without(t *testing.T, raw []byte, name string) []byte {
	names, data := files(t, raw)
	i := find(t, names, name)
	return archive(t, append(names[:i:i], names[i+1:]...), data)
}

func replace(t *testing.T, raw []byte, name string, change func([]byte) []byte) []byte {
	names, data := files(t, raw)
	n := names[find(t, names, name)]
	old := data[n]
	data[n] = change(old)
	if bytes.Equal(old, data[n]) {
		t.Fatalf("%s did not change", name)
	}
	return archive(t, names, data)
}

func appended(t *testing.T, raw []byte, name string, b []byte) []byte {
	names, data := files(t, raw)
	data[name] = b
	return archive(t, append(names, name), data)
}
