package redact

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"sealed.dev/sealed/test/harness/require"
)

func zipped(v string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = io.WriteString(z, v)
	_ = z.Close()
	return b.String()
}

func deflated(v string) string {
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	_, _ = io.WriteString(z, v)
	_ = z.Close()
	return b.String()
}

func each256(v string, f func(c byte) byte) string {
	b := []byte(v)
	for i, c := range b {
		b[i] = f(c)
	}
	return string(b)
}

// TestDeep: what only the thorough lane finds (A19, A31 in part).
func TestDeep(t *testing.T) {
	set := setOf(t, "THE_KEY", alnumValue)
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	hexa := func(s string) string { return hex.EncodeToString([]byte(s)) }
	for name, wire := range map[string]string{
		"base64 twice":             b64("x" + b64("y"+alnumValue)),
		"base64 twice, wrapped":    spaced(b64(b64("token="+alnumValue)), "\n", 64),
		"base64 three times":       b64(b64(b64(alnumValue))),
		"base64 four times":        b64(b64(b64(b64(alnumValue)))),
		"base64 url twice":         base64.URLEncoding.EncodeToString([]byte(b64("??>>" + alnumValue))),
		"hex of base64":            hexa(b64(alnumValue)),
		"hex of hex of hex":        hexa(hexa(hexa(alnumValue))),
		"base64 of hex":            b64(hexa(alnumValue)),
		"base64 of reversed hex":   b64(string(reversed([]byte(alnumValue)))),
		"base32 of base64":         base32.StdEncoding.EncodeToString([]byte(b64(alnumValue))),
		"percent of base64 of it":  url.QueryEscape(b64("a" + b64(alnumValue))),
		"gzip":                     zipped("some text " + alnumValue + " more"),
		"zlib":                     deflated("some text " + alnumValue + " more"),
		"base64 of gzip":           b64(zipped("some text " + alnumValue)),
		"base64 of gzip of base64": b64(zipped(b64(alnumValue))),
		"xor":                      each256(alnumValue, func(c byte) byte { return c ^ 0x5a }),
		"xor 255":                  each256(alnumValue, func(c byte) byte { return ^c }),
		"base64 of xor":            b64(each256(alnumValue, func(c byte) byte { return c ^ 7 })),
		"shifted by three":         each256(alnumValue, func(c byte) byte { return c + 3 }),
		"second half, \\r, first":  strings.Repeat("#", 17) + alnumValue[17:] + "\r" + alnumValue[:17],
		"cursor back":              "XXXX" + alnumValue[4:] + "\x1b[80D" + alnumValue[:4] + "\n",
		"cursor column":            "XXXX" + alnumValue[4:] + "\x1b[1G" + alnumValue[:4] + "\n",
		"many backspaces":          strings.Repeat("y", 100) + strings.Repeat("\b", 100) + spaced(alnumValue, "z\b", 1),
		"octal dump":               spaced(string(spell([]byte(alnumValue), "", octal, 3, "")), " ", 3),
		"sha256":                   hexa(string(func() []byte { s := sha256.Sum256([]byte(alnumValue)); return s[:] }())),
		"base58":                   string(base58Of([]byte(alnumValue))),
		"plain":                    alnumValue,
		"spaced":                   spaced(alnumValue, " ", 1),
	} {
		in := "before\n" + wire + "\nafter\n"
		out, r, err := Deep{}.Redact([]byte(in), set, "stored")
		if err != nil || len(r.Counts) == 0 || !strings.Contains(string(out), "[sealed:THE_KEY]") || r.Exhausted {
			t.Errorf("%s: %q, %+v, %v", name, out, r, err)
			continue
		}
		if p := shows(string(out), wire, 16); p != "" && !strings.HasPrefix(p, "####") && !strings.HasPrefix(p, "yyyy") {
			t.Errorf("%s: shows %q in %q", name, p, out)
		}
		if !bytes.HasPrefix(out, []byte("before\n")) || !bytes.HasSuffix(out, []byte("after\n")) && !strings.Contains(name, "gzip") && !strings.Contains(name, "zlib") {
			t.Errorf("%s: neighbors changed: %q", name, out)
		}
		if clean, r, _ := (Deep{}).Redact([]byte(in), NewSet(), "stored"); string(clean) != in || len(r.Counts) > 0 {
			t.Errorf("%s: an empty set changes it, so the test proves nothing", name)
		}
	}
	t.Run("budget", func(t *testing.T) {
		_, r, err := Deep{Budget: 100}.Redact([]byte(b64(strings.Repeat("filler ", 100)+b64(alnumValue))), set, "stored")
		if err != nil || !r.Exhausted {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// TestLanesAgree: what the live lane lets through, the other does not find either, and the other finds all that the live lane does.
func TestLanesAgree(t *testing.T) {
	sets := map[string]*Set{}
	for _, v := range []string{alnumValue, symbolValue, binaryValue, pemValue} {
		sets[v] = setOf(t, "THE_KEY", v)
	}
	for _, a := range attacks() {
		in := []byte("some text before\n" + a.wire + "\nand after\n")
		missed, err := Deep{}.Missed(Bytes(in, sets[a.value]), sets[a.value], "live")
		if err != nil || len(missed) > 0 {
			t.Errorf("%s: the live lane missed %v, %v", a.name, missed, err)
		}
		out, _, err := Deep{}.Redact(in, sets[a.value], "stored")
		if why := a.leak(string(out)); err != nil || why != "" {
			t.Errorf("%s: the thorough lane: %s, %v\nout %q", a.name, why, err, out)
		}
	}
}

// FuzzLanes: the two lanes, which search by different means, mask the same streams.
func FuzzLanes(f *testing.F) {
	seeds(f)
	set := fuzzSet(f)
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		in := plant(set, text, rand.New(rand.NewPCG(seed, 6)))
		if bytes.ContainsAny(in, "\b\r\x1b") { // the terminal view of the thorough lane is another one
			return
		}
		live := Bytes(in, set)
		missed, err := Deep{Depth: -1}.Missed(live, set, "live")
		for _, c := range missed {
			if slices.Contains([]string{formXOR, formShifted, formBase58, formSHA256, formASCII85, formAtbash, foldedPrefix + formAtbash, foldedPrefix + formOctal, foldedPrefix + formBinary}, c.Form) {
				continue // the live lane does not look for these
			}
			t.Fatalf("%q\nlive %q\nmissed %v, %v", in, live, missed, err)
		}
	})
}

func TestDetectors(t *testing.T) {
	for _, tt := range []struct {
		in, want string
	}{
		{"card 4111 1111 1111 1111.", "card [sealed:payment-card]."},
		{"card 4111 1111 1111 1112.", ""},
		{"amex 378282246310005", "amex [sealed:payment-card]"},
		{"id 4111111111111111222233334444", ""},
		{"IBAN DE89 3704 0044 0532 0130 00 ok", "IBAN [sealed:iban] ok"},
		{"IBAN DE88 3704 0044 0532 0130 00 ok", ""},
		{"ssn 078-05-1120,", "ssn [sealed:us-ssn],"},
		{"ssn 666-05-1120,", ""},
		{"date 2026-11-23", ""},
		{"NPI: 1234567893", "NPI: [sealed:us-npi]"},
		{"NPI: 1234567890", ""},
		{"number 1234567893", ""},
		{"key AKIAIOSFODNN7EXAMPLE", "key [sealed:aws-access-key]"},
		{"t ghp_" + strings.Repeat("a1B2", 9), "t [sealed:github-token]"},
		{"postgres://bob:hunter22@db/x", "postgres://bob:[sealed:url-password]@db/x"},
		{pemValue, "[sealed:private-key]\n"},
		{"commit 4f2a9c1e8b7d6a5f4e3d2c1b0a9f8e7d6c5b4a39", ""},
		{"h1:7D8gB0y0vB6d9sYh0S0l8mQ1m0s9fU5wXKq3pJk2b3E=", ""},
		{"550e8400-e29b-41d4-a716-446655440000", ""},
	} {
		want := tt.want
		if want == "" {
			want = tt.in
		}
		out, _, err := Deep{Detectors: append(Credentials(), PersonalData()...)}.Redact([]byte(tt.in), NewSet(), "stored")
		if err != nil || string(out) != want {
			t.Errorf("%q: got %q, %v, want %q", tt.in, out, err, want)
		}
		if out, _, _ := (Deep{}).Redact([]byte(tt.in), NewSet(), "stored"); string(out) != tt.in {
			t.Errorf("%q changed without detectors", tt.in)
		}
	}
}

func TestTree(t *testing.T) {
	set := setOf(t, "K", alnumValue)
	found, err := Tree(fstest.MapFS{
		"clean.txt":               {Data: []byte("nothing")},
		"a/raw":                   {Data: []byte("x" + alnumValue)},
		"a/" + alnumValue:         {Data: []byte("nothing")},
		".git/objects/aa/" + "bb": {Data: []byte(deflated("blob 9\x00" + alnumValue))},
		"link":                    {Mode: os.ModeSymlink, Data: []byte("https://u:" + alnumValue + "@host")},
	}, set)
	got := map[string]string{}
	for _, f := range found {
		for _, c := range f.Counts {
			got[f.Path] += c.Stream + " " + c.Form
		}
	}
	want := map[string]string{"a/raw": "content raw", "a/[sealed:K]": "name raw", ".git/objects/aa/bb": "inflated raw", "link": "link raw"}
	if err != nil || len(got) != len(want) {
		t.Errorf("got %v, %v", got, err)
	}
	for path, w := range want {
		if got[path] != w {
			t.Errorf("%s: got %q, want %q", path, got[path], w)
		}
	}
	if _, err := Tree(fstest.MapFS{}, nil); err == nil {
		t.Error("a nil set scans")
	}
}

// TestTreeGit packs a repository with git itself (B09).
func TestTreeGit(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		require.Missing(t, "git", "git is not installed")
	}
	dir := t.TempDir()
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=a", "-c", "user.email=a@b"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	git("init", "-q")
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte(strings.Repeat("line of text\n", 99)+alnumValue), 0o600); err != nil {
		t.Fatal(err)
	}
	git("add", ".")
	git("commit", "-q", "-m", "leak "+symbolValue)
	git("rm", "-q", "f")
	git("commit", "-q", "-m", "gone")
	git("gc", "-q", "--prune=now")
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	found, err := Tree(root.FS(), setOf(t, "K", alnumValue, "S", symbolValue))
	keys := map[string]bool{}
	for _, f := range found {
		for _, c := range f.Counts {
			if c.Stream == "packed" && strings.HasSuffix(f.Path, ".pack") {
				keys[c.Key] = true
			}
		}
	}
	if err != nil || !keys["K"] || !keys["S"] {
		t.Errorf("got %+v, %v", found, err)
	}
}
