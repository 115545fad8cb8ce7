package supervise

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/sealed"
)

// What init missed is masked in the log, or the log is destroyed.
func TestMaskTranscripts(t *testing.T) {
	const text = "before SECRET after\n"
	sum := sha256.Sum256([]byte(text))
	released := hex.EncodeToString(sum[:])
	spans := []sealed.MaskSpan{{Start: 7, End: 13, Key: "API_KEY"}}
	for name, c := range map[string]struct {
		masks  sealed.TranscriptMasks
		want   string // empty: no file
		said   string
		failed bool
	}{
		"masked":            {sealed.TranscriptMasks{Stream: "stdout", Released: released, Spans: spans}, "before [sealed:API_KEY] after\n", "missed API_KEY (1) on stdout", false},
		"withheld":          {sealed.TranscriptMasks{Stream: "stdout", Released: released, Withhold: true}, "", "stdout is withheld", false},
		"another log":       {sealed.TranscriptMasks{Stream: "stdout", Released: strings.Repeat("0", 64), Spans: spans}, "", "stdout is withheld", true},
		"beyond its end":    {sealed.TranscriptMasks{Stream: "stdout", Released: released, Spans: []sealed.MaskSpan{{Start: 7, End: 99, Key: "K"}}}, "", "stdout is withheld", true},
		"not a key":         {sealed.TranscriptMasks{Stream: "stdout", Released: released, Spans: []sealed.MaskSpan{{Start: 7, End: 8, Key: "\x1b[2J"}}}, "", "stdout is withheld", true},
		"no stream of ours": {sealed.TranscriptMasks{Stream: "../stdout", Withhold: true}, text, "", true},
		"control: no order": {sealed.TranscriptMasks{Stream: "stdout", Released: released}, text, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			var screen bytes.Buffer
			o := &owner{dir: t.TempDir(), cfg: Config{Stderr: &screen, Log: slog.New(slog.DiscardHandler)}}
			path := filepath.Join(o.dir, "stdout.log")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := o.maskTranscripts([]sealed.TranscriptMasks{c.masks}); (err != nil) != c.failed {
				t.Errorf("error %v", err)
			}
			got, err := os.ReadFile(path)
			if string(got) != c.want || (err != nil) != (c.want == "") {
				t.Errorf("the log is %q, %v", got, err)
			}
			if files, _ := os.ReadDir(o.dir); len(files) > 1 {
				t.Errorf("left behind: %v", files)
			}
			if c.said != "" && !strings.Contains(screen.String(), c.said) || strings.Contains(screen.String(), "\x1b") {
				t.Errorf("the screen shows %q", screen.String())
			}
		})
	}
}
