package vaultplugin

import (
	"encoding/json"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/sealed"
)

// TestLeanRow: the index keeps a run without the text of its manifest and with
// keys that it shares; what is stored and shown is the whole text.
func TestLeanRow(t *testing.T) {
	w := newWorld(t)
	var rows []runRow
	for i := range 2 {
		g := w.claimed(idem(1 + i))
		x, err := w.b.index(t.Context(), w.s)
		if err != nil {
			t.Fatal(err)
		}
		r, _ := x.run(g.run)
		if r.Manifest != "" {
			t.Error("the index keeps the text")
		}
		rows = append(rows, r)
		var stored struct{ Manifest string }
		if ok, err := get(t.Context(), w.s, storeRunsLive+string(g.run), &stored); !ok || err != nil {
			t.Fatal(ok, err)
		}
		whole, err := r.whole()
		if err != nil || whole.Manifest != stored.Manifest || sealed.DigestOf(sealed.DomainManifest, []byte(stored.Manifest)) != r.ManifestDigest {
			t.Errorf("stored %q, made again %q: %v", stored.Manifest, whole.Manifest, err)
		}
	}
	if &rows[0].m.Keys[0] != &rows[1].m.Keys[0] {
		t.Error("two runs of a profile do not share their keys")
	}
	t.Run("changed", func(t *testing.T) {
		m := *rows[0].m
		m.Epoch++
		r := rows[0]
		r.m = &m
		if _, err := json.Marshal(r); err == nil {
			t.Error("a row was stored whose manifest does not have its digest")
		}
	})
	t.Run("of another version", func(t *testing.T) {
		r, err := rows[0].whole()
		if err != nil {
			t.Fatal(err)
		}
		r.Manifest = strings.Replace(r.Manifest, "{", `{"later":1,`, 1)
		if got := newGrantIndex().lean(r); got.Manifest != r.Manifest {
			t.Error("a text that can't be made again was dropped")
		}
	})
}
