package vaultclient

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// A LogFilter narrows a page of the log. The zero value is its beginning.
type LogFilter struct {
	From  uint64       // number of the first entry
	Limit int          // 0: the engine's default, 100; at most 1000
	Type  string       // a final .* matches a family, such as run.*
	Run   sealed.RunID // only entries of this run
}

// A LogEntry is one entry as the engine shows it; it proves nothing. Body is
// null when the entry was erased.
type LogEntry struct {
	Seq  uint64          `json:"seq"`
	Time time.Time       `json:"time"`
	Type string          `json:"type"`
	Run  sealed.RunID    `json:"run,omitempty"`
	Body json.RawMessage `json:"body"`
}

// LogEntries returns a page of entries, oldest first, and where the next page
// begins: at From again when there is nothing new.
func (e *Engine) LogEntries(ctx context.Context, filter LogFilter) (entries []LogEntry, next uint64, err error) {
	query := map[string]string{"from": strconv.FormatUint(filter.From, 10)}
	for k, v := range map[string]string{"type": filter.Type, "run": string(filter.Run)} {
		if v != "" {
			query[k] = v
		}
	}
	if filter.Limit > 0 {
		query["limit"] = strconv.Itoa(filter.Limit)
	}
	f, err := e.read(ctx, query, "log", "entries")
	if err != nil {
		return nil, 0, err
	}
	lines, err := f.text("entries")
	if err != nil {
		return nil, 0, err
	}
	for dec := json.NewDecoder(strings.NewReader(lines)); ; {
		var entry LogEntry
		if err := dec.Decode(&entry); err == io.EOF {
			break
		} else if err != nil {
			return nil, 0, f.malformed("entries")
		}
		entries = append(entries, entry)
	}
	next, err = f.number("next")
	return entries, next, err
}

// LogReader returns the mount's log for audit.WriteDir. It verifies nothing:
// audit.VerifyDir does, from what was written.
func (e *Engine) LogReader() audit.Reader { return logReader{e} }

type logReader struct{ e *Engine }

// Checkpoint implements audit.Reader.
func (r logReader) Checkpoint(ctx context.Context) ([]byte, error) {
	f, err := r.e.read(ctx, nil, "log", "checkpoint")
	if err != nil {
		return nil, err
	}
	text, err := f.text("checkpoint")
	return []byte(text), err
}

// ReadTile implements audit.Reader.
func (r logReader) ReadTile(ctx context.Context, path string) ([]byte, error) {
	if err := segments("tile", path); err != nil {
		return nil, err
	}
	f, err := r.e.read(ctx, nil, "log", path)
	if err != nil {
		return nil, err
	}
	text, err := f.text("tile")
	if err != nil {
		return nil, err
	}
	tile, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, f.malformed("tile")
	}
	return tile, nil
}

// Side implements audit.Reader.
func (r logReader) Side(ctx context.Context, seq uint64) (audit.Side, error) {
	f, err := r.e.read(ctx, nil, "log", "entry", strconv.FormatUint(seq, 10))
	if err != nil {
		return audit.Side{}, err
	}
	if f.bool("erased") {
		return audit.Side{}, fmt.Errorf("reading entry %d: %w", seq, audit.ErrErased)
	}
	body, err := f.text("body")
	if err != nil {
		return audit.Side{}, err
	}
	text, err := f.text("salt")
	if err != nil {
		return audit.Side{}, err
	}
	salt, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return audit.Side{}, f.malformed("salt")
	}
	return audit.Side{Salt: salt, Body: []byte(body)}, nil
}
