package supervise

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"sealed.dev/sealed/internal/sealed"
)

// maskTranscripts does to the logs what init found necessary when it looked at
// its output again, and tells who watched the run. The processes are gone and
// the logs are closed. A log that is not what init speaks about, or that can't
// be rewritten, is destroyed.
func (o *owner) maskTranscripts(all []sealed.TranscriptMasks) error {
	var errs []error
	for _, m := range all {
		if m.Stream != "stdout" && m.Stream != "stderr" {
			errs = append(errs, fmt.Errorf("masking transcript: no stream %q: %w", sealed.CleanReason(m.Stream), sealed.ErrInvalid))
			continue
		}
		path := filepath.Join(o.dir, m.Stream+".log")
		var err error
		if !m.Withhold {
			err = maskLog(path, m)
		}
		if m.Withhold || err != nil {
			m.Withhold = true
			err = errors.Join(err, os.Remove(path))
		}
		errs = append(errs, err)
		o.sayMissed(m)
	}
	return errors.Join(errs...)
}

// maskLog replaces a log by its masked copy.
func maskLog(path string, m sealed.TranscriptMasks) error {
	from, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("masking transcript: %w", err)
	}
	defer from.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, from); err != nil {
		return fmt.Errorf("masking transcript: %w", err)
	}
	if hex.EncodeToString(sum.Sum(nil)) != m.Released {
		return fmt.Errorf("masking transcript of %s: it is not what init let out: %w", m.Stream, sealed.ErrInvalid)
	}
	if _, err := from.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("masking transcript: %w", err)
	}
	to, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("masking transcript: %w", err)
	}
	err = errors.Join(m.Apply(to, from), to.Close())
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(path+".new"))
	}
	return nil
}

// sayMissed writes a line for the operator: what was shown can't be taken back.
// It is no part of the logs.
func (o *owner) sayMissed(m sealed.TranscriptMasks) {
	text := "the transcript of " + m.Stream + " is withheld"
	if !m.Withhold {
		var found []string
		if missed := named(m.Spans, false); missed != "" {
			found = append(found, "the redactor missed "+missed)
		}
		if detected := named(m.Spans, true); detected != "" {
			found = append(found, "detected "+detected)
		}
		text = strings.Join(found, ", ") + " on " + m.Stream + "; shown, but masked in the transcript"
	}
	o.cfg.Log.Warn("redaction missed a value", "run", string(o.cfg.Run), "stream", m.Stream, "withheld", m.Withhold)
	if o.cfg.Stderr != nil {
		_, _ = io.WriteString(o.cfg.Stderr, "sealed: warning: "+text+"\n")
	}
}

// named says what the spans stand for that were detected, or were not, and how often.
func named(spans []sealed.MaskSpan, detected bool) string {
	count := map[string]int{}
	var keys []string
	for _, s := range spans {
		if s.Detected != detected {
			continue
		}
		if count[s.Key]++; count[s.Key] == 1 {
			keys = append(keys, s.Key)
		}
	}
	for i, k := range keys {
		keys[i] = fmt.Sprintf("%s (%d)", k, count[k])
	}
	return strings.Join(keys, ", ")
}
