package attack

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/canary"
	"sealed.dev/sealed/test/harness"
)

// G01 to G07, G20: the log of a real engine, with a real run in it, is taken
// away and changed. Its verification, from the files alone, fails. The control
// comes first: unchanged it verifies.
func TestG01G07ChangedLog(t *testing.T) {
	w := get(t)
	profile, c := w.profile(t, binding("api.test"))
	run := w.Ctl(t, harness.Caller{}, shell(profile, "echo $KEY", "--no-workspace")...).Want(t, 0).RunID(t)
	other := w.Ctl(t, harness.Caller{}, shell("", "echo other", "--no-workspace")...).Want(t, 0).RunID(t)
	early := w.Pull(t)
	w.Ctl(t, harness.Caller{}, shell("", "echo later", "--no-workspace")...).Want(t, 0)
	dir := w.Pull(t)
	key := w.LogKey(t)
	verify := func(dir string, pinned []byte) error {
		_, err := audit.VerifyDir(dir, audit.Options{VerifierKey: key, Pinned: pinned})
		return err
	}
	head := read(t, dir, "checkpoint")
	if err := errorsJoin(verify(early, nil), verify(dir, read(t, early, "checkpoint"))); err != nil {
		t.Fatalf("control: %v", err)
	}
	all := list(t, dir)
	sides := slices.DeleteFunc(slices.Clone(all), func(p string) bool { return strings.HasPrefix(p, "tile/") || p == "checkpoint" })
	bundle := all[slices.IndexFunc(all, func(p string) bool { return strings.HasPrefix(p, "tile/entries/") })]
	tile := all[slices.IndexFunc(all, func(p string) bool { return strings.HasPrefix(p, "tile/0/") })]
	record := func(id sealed.RunID) string {
		i := slices.IndexFunc(all, func(p string) bool { return strings.Contains(p, string(id)) })
		if i < 0 {
			t.Fatalf("no record of %s in %q", id, all)
		}
		return all[i]
	}
	attacks := map[string]struct {
		do     func(dir string)
		pinned []byte
	}{
		"G01 a bit of the entries":     {do: func(d string) { flip(t, d, bundle, 20) }},
		"G01 the last bit of them":     {do: func(d string) { flip(t, d, bundle, -1) }},
		"G01 a bit of a tile":          {do: func(d string) { flip(t, d, tile, 5) }},
		"G01 a bit of the head":        {do: func(d string) { flip(t, d, "checkpoint", 30) }},
		"G01 a bit of the signature":   {do: func(d string) { flip(t, d, "checkpoint", -4) }},
		"G01 a bit of a record":        {do: func(d string) { flip(t, d, record(run), 200) }},
		"G02 the entries deleted":      {do: func(d string) { remove(t, d, bundle) }},
		"G02 a tile deleted":           {do: func(d string) { remove(t, d, tile) }},
		"G02 the head deleted":         {do: func(d string) { remove(t, d, "checkpoint") }},
		"G02 a record deleted":         {do: func(d string) { remove(t, d, record(run)) }},
		"G03 entries reordered":        {do: func(d string) { swapHalves(t, d, bundle) }},
		"G04 the tail of the entries":  {do: func(d string) { cut(t, d, bundle, 100) }},
		"G04 cut back, and signed":     {do: func(d string) { overwrite(t, d, early) }, pinned: head},
		"G05 from zero":                {do: func(d string) { harness.Must(t, os.RemoveAll(d)); harness.Must(t, os.MkdirAll(d, 0o700)) }},
		"G06 entries doubled":          {do: func(d string) { put(t, d, bundle, append(read(t, d, bundle), read(t, d, bundle)...)) }},
		"G07 a head by another key":    {do: func(d string) { put(t, d, "checkpoint", resign(t, read(t, d, "checkpoint"))) }},
		"G04 an older head":            {do: func(d string) { put(t, d, "checkpoint", read(t, early, "checkpoint")) }, pinned: head},
		"G20 a record for another's":   {do: func(d string) { put(t, d, record(run), read(t, d, record(other))) }},
		"G20 two records exchanged":    {do: func(d string) { exchange(t, d, record(run), record(other)) }},
		"G20 a record without a proof": {do: func(d string) { put(t, d, record(run), forged(t, read(t, d, record(run)))) }},
	}
	for name, a := range attacks {
		t.Run(name, func(t *testing.T) {
			d := filepath.Join(t.TempDir(), "log")
			harness.Must(t, os.CopyFS(d, os.DirFS(dir)))
			a.do(d)
			if err := verify(d, a.pinned); err == nil {
				t.Error("it verifies")
			}
		})
	}
	t.Run("every body and salt", func(t *testing.T) {
		d := filepath.Join(t.TempDir(), "log")
		harness.Must(t, os.CopyFS(d, os.DirFS(dir)))
		for i, p := range sides {
			if i%7 != 0 { // one in seven is enough, and quick
				continue
			}
			old := read(t, d, p)
			flip(t, d, p, len(old)/2)
			if err := verify(d, nil); err == nil {
				t.Errorf("with a changed bit in %s it verifies", p)
			}
			put(t, d, p, old)
		}
		harness.Must(t, verify(d, nil)) // and the control
	})
	t.Run("G15 a stolen log", func(t *testing.T) {
		token := canary.FromValue("token", string(w.Token(t, "operator")))
		hits, err := canary.ScanTree(dir, c, token)
		harness.Must(t, err)
		if len(hits) > 0 {
			t.Error(hits)
		}
		found, err := canary.ScanTree(dir, canary.FromValue("run", string(run)))
		harness.Must(t, err)
		if len(found) == 0 {
			t.Error("control: the scan does not find the run")
		}
	})
}

func errorsJoin(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	harness.Must(t, fs.WalkDir(os.DirFS(dir), ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, p)
		}
		return err
	}))
	return out
}

func read(t *testing.T, dir, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, path))
	harness.Must(t, err)
	return b
}

func put(t *testing.T, dir, path string, b []byte) {
	t.Helper()
	harness.Must(t, os.WriteFile(filepath.Join(dir, path), b, 0o600))
}

func remove(t *testing.T, dir, path string) {
	t.Helper()
	harness.Must(t, os.Remove(filepath.Join(dir, path)))
}

// flip changes one bit of a byte, counted from the end if it is negative.
func flip(t *testing.T, dir, path string, at int) {
	t.Helper()
	b := read(t, dir, path)
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 1
	put(t, dir, path, b)
}

func cut(t *testing.T, dir, path string, n int) {
	t.Helper()
	b := read(t, dir, path)
	put(t, dir, path, b[:len(b)-n])
}

func swapHalves(t *testing.T, dir, path string) {
	t.Helper()
	b := read(t, dir, path)
	put(t, dir, path, append(bytes.Clone(b[len(b)/2:]), b[:len(b)/2]...))
}

func exchange(t *testing.T, dir, a, b string) {
	t.Helper()
	x, y := read(t, dir, a), read(t, dir, b)
	put(t, dir, a, y)
	put(t, dir, b, x)
}

func overwrite(t *testing.T, dir, with string) {
	t.Helper()
	harness.Must(t, os.RemoveAll(dir))
	harness.Must(t, os.CopyFS(dir, os.DirFS(with)))
}

// resign signs a checkpoint under its own name with a key that is not the log's.
func resign(t *testing.T, head []byte) []byte {
	t.Helper()
	text, _, ok := bytes.Cut(head, []byte("\n\n"))
	if !ok {
		t.Fatal("no checkpoint")
	}
	origin, _, _ := strings.Cut(string(text), "\n")
	skey, _, err := note.GenerateKey(rand.Reader, origin)
	harness.Must(t, err)
	signer, err := note.NewSigner(skey)
	harness.Must(t, err)
	out, err := note.Sign(&note.Note{Text: string(text) + "\n"}, signer)
	harness.Must(t, err)
	return out
}

// forged replaces the signature of a record by one of another key.
func forged(t *testing.T, envelope []byte) []byte {
	t.Helper()
	var doc map[string]any
	harness.Must(t, json.Unmarshal(envelope, &doc))
	payload, err := base64.StdEncoding.DecodeString(doc["payload"].(string))
	harness.Must(t, err)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	harness.Must(t, err)
	sig := doc["signatures"].([]any)[0].(map[string]any)
	sig["sig"] = base64.StdEncoding.EncodeToString(ed25519.Sign(key, payload))
	out, err := json.Marshal(doc)
	harness.Must(t, err)
	return out
}
