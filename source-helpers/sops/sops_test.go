package sops_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"filippo.io/age"
	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	getsops "github.com/getsops/sops/v3"
	"github.com/getsops/sops/v3/aes"
	sopsage "github.com/getsops/sops/v3/age"
	"github.com/getsops/sops/v3/cmd/sops/common"
	"github.com/getsops/sops/v3/cmd/sops/formats"
	"github.com/getsops/sops/v3/config"
	"github.com/getsops/sops/v3/keyservice"
	"github.com/getsops/sops/v3/pgp"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/source-helpers/sops"
)

const plainYAML = `token: value-of-the-token
db:
    - name: main
      pass~/word: value-of-the-database
port: 5432
open_unencrypted: value-in-the-clear
empty: ""
`

func identity(t testing.TB) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// encrypt encrypts a file as SOPS does, for an age recipient, and then lets
// change have a look at the tree and its data key.
func encrypt(t testing.TB, name, plain, recipient string, change func(tree *getsops.Tree, key []byte)) []byte {
	t.Helper()
	store := common.StoreForFormat(formats.FormatForPath(name), config.NewStoresConfig())
	branches, err := store.LoadPlainFile([]byte(plain))
	if err != nil {
		t.Fatal(err)
	}
	mk, err := sopsage.MasterKeyFromRecipient(recipient)
	if err != nil {
		t.Fatal(err)
	}
	tree := getsops.Tree{Branches: branches, Metadata: getsops.Metadata{KeyGroups: []getsops.KeyGroup{{mk}}, UnencryptedSuffix: "_unencrypted", Version: "3.13.3"}}
	key, errs := tree.GenerateDataKeyWithKeyServices([]keyservice.KeyServiceClient{keyservice.NewLocalClient()})
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	if err := common.EncryptTree(common.EncryptTreeOpts{Tree: &tree, Cipher: aes.NewCipher(), DataKey: key}); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&tree, key)
	}
	out, err := store.EmitEncryptedFile(tree)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A place is a directory with a source on it.
type place struct {
	t    *testing.T
	root string
	id   *age.X25519Identity
	*sops.Source
}

func newPlace(t *testing.T) place {
	t.Helper()
	p := place{t: t, root: t.TempDir(), id: identity(t)}
	if err := os.MkdirAll(filepath.Join(p.root, "team", "ci"), 0o755); err != nil {
		t.Fatal(err)
	}
	p.Source = p.open(p.id.String())
	return p
}

func (p place) open(credential string) *sops.Source {
	p.t.Helper()
	s, err := sops.Open(sealed.SourceConfig{Name: "s", Type: sealed.SourceSOPS, Mount: "team"}, p.root, secret.New([]byte(credential)))
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

func (p place) write(name string, data []byte) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.root, "team", name), data, 0o644); err != nil {
		p.t.Fatal(err)
	}
}

func mint(t *testing.T, s *sops.Source, path, field string) (got string, err error) {
	t.Helper()
	m, err := s.Mint(t.Context(), sealed.KeyRef{Path: path, Field: field}, "")
	_ = m.Value.Reveal(func(b []byte) error { got = string(b); return nil })
	if err != nil && (m.Value != nil || strings.Contains(err.Error(), "value-") || strings.Contains(err.Error(), "AGE-SECRET")) {
		t.Errorf("%s %s: the error shows something, or there is a value: %v", path, field, err)
	}
	return got, err
}

func TestFormats(t *testing.T) {
	p := newPlace(t)
	if err := p.Check(t.Context()); err != nil {
		t.Error(err)
	}
	for name, plain := range map[string]string{
		"ci/a.yaml": plainYAML, "ci/a.json": `{"token":"value-of-the-token","db":[{"pass~/word":"value-of-the-database"}],"port":5432}`,
		"a.env": "token=value-of-the-token\n", "a.ini": "[db]\ntoken = value-of-the-token\n", "a.bin": "value-of-\x00the-file",
	} {
		p.write(name, encrypt(t, name, plain, p.id.Recipient().String(), nil))
	}
	for _, tt := range []struct {
		path, field, want string
		err               error
	}{
		{"ci/a.yaml", "token", "value-of-the-token", nil},
		{"ci/a.yaml", "/token", "value-of-the-token", nil},
		{"ci/a.yaml", "/db/0/pass~0~1word", "value-of-the-database", nil},
		{"ci/a.json", "/db/0/pass~0~1word", "value-of-the-database", nil},
		{"a.env", "token", "value-of-the-token", nil},
		{"a.ini", "/db/token", "value-of-the-token", nil},
		{"a.bin", "", "value-of-\x00the-file", nil},
		{"ci/a.yaml", "port", "", sealed.ErrUnavailable},
		{"ci/a.yaml", "empty", "", sealed.ErrUnavailable},
		{"ci/a.yaml", "open_unencrypted", "", sealed.ErrUnavailable},
		{"ci/a.yaml", "none", "", sealed.ErrUnavailable},
		{"ci/a.yaml", "", "", sealed.ErrUnavailable},
		{"ci/a.yaml", "db", "", sealed.ErrUnavailable},
		{"ci/a.yaml", "/db/00/name", "", sealed.ErrUnavailable},
		{"ci/a.yaml", "/db/1/name", "", sealed.ErrUnavailable},
		{"ci/a.yaml", "sops", "", sealed.ErrUnavailable},
		{"ci/a.yaml", "/a~2", "", sealed.ErrInvalid},
		{"ci/none.yaml", "token", "", sealed.ErrNotFound},
	} {
		if got, err := mint(t, p.Source, tt.path, tt.field); got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%s %s: %q, %v", tt.path, tt.field, got, err)
		}
	}
}

// The version of a value is its file's.
func TestVersion(t *testing.T) {
	p := newPlace(t)
	write := func(plain string) { p.write("a.yaml", encrypt(t, "a.yaml", plain, p.id.Recipient().String(), nil)) }
	write(plainYAML)
	ref := sealed.KeyRef{Path: "a.yaml", Field: "token"}
	first, err := p.Mint(t.Context(), ref, "")
	if err != nil || first.Version.Validate("version") != nil || first.Version == "" {
		t.Fatal(first.Version, err)
	}
	pinned := ref
	pinned.Version = first.Version
	for _, r := range []sealed.KeyRef{ref, pinned} {
		if v, err := p.Newest(t.Context(), r); v != first.Version || err != nil {
			t.Errorf("%+v: %s %v", r, v, err)
		}
	}
	if m, err := p.Mint(t.Context(), pinned, ""); m.Value == nil || err != nil {
		t.Error(err)
	}
	write(plainYAML)
	if v, err := p.Newest(t.Context(), ref); v == first.Version || v == "" || err != nil {
		t.Errorf("after a change: %s %v", v, err)
	}
	if v, err := p.Newest(t.Context(), pinned); v != "" || !errors.Is(err, sealed.ErrNotFound) {
		t.Errorf("the old one: %s %v", v, err)
	}
	if m, err := p.Mint(t.Context(), pinned, ""); m.Value != nil || !errors.Is(err, sealed.ErrNotFound) {
		t.Errorf("the old one: %v", err)
	}
	for path, want := range map[string]error{"none.yaml": sealed.ErrNotFound, "../a.yaml": sealed.ErrInvalid} {
		if v, err := p.Newest(t.Context(), sealed.KeyRef{Path: path, Field: "token"}); v != "" || !errors.Is(err, want) {
			t.Errorf("%s: %s %v", path, v, err)
		}
	}
}

// TestPGP opens a file for a PGP key, made without any key ring or program.
func TestPGP(t *testing.T) {
	p := newPlace(t)
	entity, err := openpgp.NewEntity("ci", "", "ci@example.com", nil)
	if err != nil {
		t.Fatal(err)
	}
	var private bytes.Buffer
	w, err := armor.Encode(&private, "PGP PRIVATE KEY BLOCK", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(entity.SerializePrivate(w, nil), w.Close()); err != nil {
		t.Fatal(err)
	}
	p.write("a.yaml", encrypt(t, "a.yaml", plainYAML, p.id.Recipient().String(), func(tree *getsops.Tree, key []byte) {
		var enc bytes.Buffer
		w, err := armor.Encode(&enc, "PGP MESSAGE", nil)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := openpgp.Encrypt(w, []*openpgp.Entity{entity}, nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, werr := plain.Write(key)
		if err := errors.Join(werr, plain.Close(), w.Close()); err != nil {
			t.Fatal(err)
		}
		mk := pgp.NewMasterKeyFromFingerprint(fmt.Sprintf("%X", entity.PrimaryKey.Fingerprint))
		mk.EncryptedKey = enc.String()
		tree.Metadata.KeyGroups = []getsops.KeyGroup{{mk}}
	}))
	for name, credential := range map[string]string{"pgp": private.String(), "both": p.id.String() + "\n" + private.String()} {
		if got, err := mint(t, p.open(credential), "a.yaml", "token"); got != "value-of-the-token" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if got, err := mint(t, p.Source, "a.yaml", "token"); !errors.Is(err, sealed.ErrUnavailable) || got != "" {
		t.Errorf("opened without the key: %v", err)
	}
}

// TestTampering: nothing of a file that was changed comes out. The tree as it
// was is the negative control.
func TestTampering(t *testing.T) {
	p := newPlace(t)
	good := encrypt(t, "a.json", `{"note_unencrypted":"n","other":"value-of-another","token":"value-of-the-token"}`, p.id.Recipient().String(), nil)
	edit := func(f func(doc, meta map[string]any)) []byte {
		var doc map[string]any
		if err := json.Unmarshal(good, &doc); err != nil {
			t.Fatal(err)
		}
		f(doc, doc["sops"].(map[string]any))
		out, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	stranger := identity(t)
	for name, tt := range map[string]struct {
		data []byte
		ok   bool
	}{
		"as it was":         {edit(func(_, _ map[string]any) {}), true},
		"swapped values":    {edit(func(d, _ map[string]any) { d["token"], d["other"] = d["other"], d["token"] }), false},
		"copied value":      {edit(func(d, _ map[string]any) { d["other"] = d["token"] }), false},
		"plain value":       {edit(func(d, _ map[string]any) { d["token"] = "value-of-the-attacker" }), false},
		"plain other":       {edit(func(d, _ map[string]any) { d["note_unencrypted"] = "changed" }), false},
		"removed value":     {edit(func(d, _ map[string]any) { delete(d, "other") }), false},
		"no mac":            {edit(func(_, m map[string]any) { delete(m, "mac") }), false},
		"empty mac":         {edit(func(_, m map[string]any) { m["mac"] = "" }), false},
		"mac of a value":    {edit(func(d, m map[string]any) { m["mac"] = d["token"] }), false},
		"other time":        {edit(func(_, m map[string]any) { m["lastmodified"] = "2020-01-01T00:00:00Z" }), false},
		"no keys":           {edit(func(_, m map[string]any) { delete(m, "age") }), false},
		"no metadata":       {edit(func(d, _ map[string]any) { delete(d, "sops") }), false},
		"odd metadata":      {edit(func(d, _ map[string]any) { d["sops"] = 7 }), false},
		"key of a stranger": {encrypt(t, "a.json", `{"token":"value-of-a-stranger"}`, stranger.Recipient().String(), nil), false},
		"truncated":         {good[:len(good)/2], false},
		"empty":             {nil, false},
		"no JSON":           {[]byte("value-that-is-no-JSON"), false},
		"deep":              {[]byte(strings.Repeat("[", 500_000)), false},
	} {
		p.write("a.json", tt.data)
		got, err := mint(t, p.Source, "a.json", "token")
		if tt.ok != (got == "value-of-the-token") || tt.ok != (err == nil) || (err != nil && !errors.Is(err, sealed.ErrUnavailable)) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// TestNothingIsCalled: a file that names keys of a cloud makes no connection,
// and starts no program.
func TestNothingIsCalled(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	called := make(chan struct{}, 16)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			called <- struct{}{}
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close() })
	mark := filepath.Join(t.TempDir(), "started")
	t.Setenv("SOPS_AGE_KEY_CMD", "touch "+mark)
	t.Setenv("SOPS_GPG_EXEC", "/bin/touch")
	p := newPlace(t)
	good := encrypt(t, "a.json", `{"token":"value-of-the-token"}`, p.id.Recipient().String(), nil)
	var doc map[string]any
	if err := json.Unmarshal(good, &doc); err != nil {
		t.Fatal(err)
	}
	meta := doc["sops"].(map[string]any)
	meta["hc_vault"] = []any{map[string]any{"vault_address": "http://" + l.Addr().String(), "engine_path": "transit", "key_name": "k", "enc": "vault:v1:x", "created_at": "2026-01-01T00:00:00Z"}}
	meta["azure_kv"] = []any{map[string]any{"vault_url": "http://" + l.Addr().String(), "name": "k", "version": "1", "enc": "x", "created_at": "2026-01-01T00:00:00Z"}}
	meta["kms"] = []any{map[string]any{"arn": "arn:aws:kms:eu-central-1:123456789012:key/x", "enc": "eA==", "created_at": "2026-01-01T00:00:00Z"}}
	meta["pgp"] = []any{map[string]any{"fp": "AAAA", "enc": "x", "created_at": "2026-01-01T00:00:00Z"}}
	for _, own := range []bool{true, false} {
		if !own {
			delete(meta, "age")
		}
		raw, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		p.write("a.json", raw)
		if got, err := mint(t, p.Source, "a.json", "token"); own != (got == "value-of-the-token") {
			t.Errorf("own key %v: %q, %v", own, got, err)
		}
	}
	select {
	case <-called:
		t.Error("the file made a connection")
	default:
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("the environment started a program")
	}
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	<-called // negative control: a connection is seen
}

func TestJail(t *testing.T) {
	p := newPlace(t)
	outside := filepath.Join(t.TempDir(), "a.yaml")
	file := encrypt(t, "a.yaml", plainYAML, p.id.Recipient().String(), nil)
	p.write("a.yaml", file)
	for _, err := range []error{
		os.WriteFile(outside, file, 0o644), os.WriteFile(filepath.Join(p.root, "above.yaml"), file, 0o644),
		os.Symlink(outside, filepath.Join(p.root, "team", "link.yaml")), os.Symlink("a.yaml", filepath.Join(p.root, "team", "near.yaml")),
		os.Symlink(filepath.Dir(outside), filepath.Join(p.root, "team", "dir")), os.Symlink(".", filepath.Join(p.root, "team", "here")),
		syscall.Mkfifo(filepath.Join(p.root, "team", "fifo.yaml"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	p.write("big.yaml", append(file, bytes.Repeat([]byte("#"), 1<<20)...))
	for path, want := range map[string]error{
		"link.yaml": sealed.ErrUnavailable, "near.yaml": sealed.ErrUnavailable, "dir/a.yaml": sealed.ErrUnavailable, "here/a.yaml": sealed.ErrUnavailable, "fifo.yaml": sealed.ErrUnavailable,
		"ci": sealed.ErrUnavailable, "big.yaml": sealed.ErrUnavailable, "../above.yaml": sealed.ErrInvalid, outside: sealed.ErrInvalid, "./a.yaml": sealed.ErrInvalid, "": sealed.ErrInvalid, "a\x00.yaml": sealed.ErrInvalid,
	} {
		if got, err := mint(t, p.Source, path, "token"); !errors.Is(err, want) || got != "" {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	if got, err := mint(t, p.Source, "a.yaml", "token"); got != "value-of-the-token" {
		t.Errorf("negative control: %q, %v", got, err)
	}
	if err := os.RemoveAll(filepath.Join(p.root, "team")); err != nil {
		t.Fatal(err)
	}
	if err := p.Check(t.Context()); !errors.Is(err, sealed.ErrUnavailable) {
		t.Error(err)
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(p.root, "team")); err != nil {
		t.Fatal(err)
	}
	if got, err := mint(t, p.Source, "a.yaml", "token"); !errors.Is(err, sealed.ErrUnavailable) || got != "" || p.Check(t.Context()) == nil {
		t.Errorf("through a linked directory: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	id := identity(t).String()
	for _, cred := range []string{"", "canary", "# only a comment", id + "x", "AGE-PLUGIN-CANARY-1QQQQ", "-----BEGIN PGP PRIVATE KEY BLOCK-----\ncanary", "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\ncanary\n-----END PGP PRIVATE KEY BLOCK-----"} {
		if _, err := sops.Open(sealed.SourceConfig{Name: "s"}, "/srv", secret.New([]byte(cred))); !errors.Is(err, sealed.ErrInvalid) || strings.Contains(err.Error(), "canary") {
			t.Errorf("credential %q: %v", cred, err)
		}
	}
	for _, root := range []string{"", "/", "srv", "/srv/", "/srv/../etc"} {
		if _, err := sops.Open(sealed.SourceConfig{Name: "s"}, root, secret.New([]byte(id))); !errors.Is(err, sealed.ErrInvalid) {
			t.Errorf("root %q: %v", root, err)
		}
	}
}

// FuzzMint gives SOPS's parsers what anybody could have written into the
// directory.
func FuzzMint(f *testing.F) {
	id := identity(f)
	for _, name := range []string{"a.yaml", "a.json", "a.env", "a.ini", "a.bin"} {
		f.Add(name, []byte("{}"))
	}
	f.Add("a.yaml", encrypt(f, "a.yaml", plainYAML, id.Recipient().String(), nil))
	f.Add("a.yaml", []byte("a: &a [1]\nb: [*a,*a]\nsops: {mac: x}"))
	root := f.TempDir()
	if err := os.Mkdir(filepath.Join(root, "team"), 0o755); err != nil {
		f.Fatal(err)
	}
	s, err := sops.Open(sealed.SourceConfig{Name: "s", Type: sealed.SourceSOPS, Mount: "team"}, root, secret.New([]byte(id.String())))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		if filepath.Base(name) != name || os.WriteFile(filepath.Join(root, "team", name), data, 0o644) != nil {
			return
		}
		if _, err := s.Mint(t.Context(), sealed.KeyRef{Path: name, Field: "token"}, ""); err != nil && !errors.Is(err, sealed.ErrUnavailable) && !errors.Is(err, sealed.ErrInvalid) {
			t.Fatal(err)
		}
	})
}
