package canary

import (
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
)

func TestScanFinds(t *testing.T) {
	c, err := New("K")
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		"raw":        "x" + c.Value + "y",
		"split":      c.Value[:10] + "\n" + c.Value[10:],
		"base64":     base64.StdEncoding.EncodeToString([]byte("a" + c.Value + "b")),
		"base64 2":   base64.StdEncoding.EncodeToString([]byte("ab" + c.Value + "c\n")),
		"base64url":  base64.RawURLEncoding.EncodeToString([]byte(c.Value)),
		"hex":        hex.EncodeToString([]byte(c.Value)),
		"first half": c.Value[:len(c.Value)/2],
	} {
		if len(Scan(name, []byte(data), c)) == 0 {
			t.Errorf("%s: not found", name)
		}
	}
	if hits := Scan("clean", []byte("nothing of the kind"), c); len(hits) != 0 {
		t.Errorf("clean text: %v", hits)
	}
}

func TestScanTreeAndProcess(t *testing.T) {
	c, err := New("K")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte(c.Value), 0o600); err != nil {
		t.Fatal(err)
	}
	if hits, err := ScanTree(dir, c); err != nil || len(hits) == 0 {
		t.Errorf("ScanTree = %v, %v", hits, err)
	}
	if hits, err := ScanProcess(os.Getpid(), c); err != nil || len(hits) == 0 {
		t.Errorf("ScanProcess of ourselves = %v, %v; the value is in our memory", hits, err)
	}
	if _, err := ScanProcess(1<<30, c); err == nil {
		t.Error("ScanProcess of nothing: no error")
	}
}
