package vaultplugin

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"golang.org/x/mod/sumdb/note"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

const (
	defaultEntries = 100
	maxEntries     = 1000
	// maxScanned bounds what one filtered page reads.
	maxScanned = 10_000
)

func (b *backend) pathLog() []*framework.Path {
	seq := &framework.FieldSchema{Type: framework.TypeString, Description: "Number of the entry."}
	path := func(pattern, suffix, synopsis, description string, fields map[string]*framework.FieldSchema, f nounFunc) *framework.Path {
		return &framework.Path{
			Pattern: pattern, DisplayAttrs: display(suffix), Fields: fields, HelpSynopsis: synopsis, HelpDescription: description,
			Operations: map[logical.Operation]framework.OperationHandler{logical.ReadOperation: b.op(synopsis, f)},
		}
	}
	return []*framework.Path{
		path("log/checkpoint", "log-checkpoint", "Read the newest signed checkpoint.", "A C2SP tlog-checkpoint: a signed note. commits is how many writes the engine has committed entries with since it started.", nil, b.logCheckpoint),
		path("log/tile/(?P<path>.+)", "log-tile", "Read a tile of the log.", "C2SP tlog-tiles; the bytes are base64 in one field.",
			map[string]*framework.FieldSchema{"path": {Type: framework.TypeString, Description: "Path below tile/."}}, b.logTile),
		path("log/entries", "log-entries", "Read entries, oldest first.", "JSON lines in one field. next is where to go on; it equals from when there is nothing new.",
			map[string]*framework.FieldSchema{
				"from":  {Type: framework.TypeString, Description: "Number of the first entry.", Query: true},
				"limit": {Type: framework.TypeInt, Description: "At most this many entries (default 100, at most 1000).", Query: true},
				"type":  {Type: framework.TypeString, Description: "Only this type; a final .* matches a family, such as run.*", Query: true},
				"run":   {Type: framework.TypeString, Description: "Only entries of this run.", Query: true},
			}, b.logEntries),
		path("log/entry/(?P<seq>[0-9]+)", "log-entry", "Read one entry: leaf, body and salt.", "Body and salt are empty when the entry was erased.",
			map[string]*framework.FieldSchema{"seq": seq}, b.logEntry),
		path("log/proof", "log-proof", "Prove that the log has only grown.", "The newest checkpoint, and the RFC 6962 consistency proof from the tree of size old to it, as base64 hashes.",
			map[string]*framework.FieldSchema{"old": {Type: framework.TypeString, Description: "Size of the older tree.", Query: true}}, b.logProof),
	}
}

func (b *backend) logCheckpoint(ctx context.Context, req *logical.Request, _ *framework.FieldData) (map[string]any, error) {
	l, err := b.auditLog(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	head, err := l.Checkpoint(ctx)
	if err != nil {
		return nil, err
	}
	return map[string]any{"checkpoint": string(head), "commits": strconv.FormatUint(l.Commits(), 10)}, nil
}

func (b *backend) logTile(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	l, err := b.auditLog(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	tile, err := l.ReadTile(ctx, "tile/"+text(d, "path"))
	if errors.Is(err, audit.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return map[string]any{"tile": base64.StdEncoding.EncodeToString(tile)}, nil
}

// A logLine is one entry as log/entries shows it. Body is null when erased.
type logLine struct {
	Seq  uint64          `json:"seq"`
	Time time.Time       `json:"time"`
	Type string          `json:"type"`
	Run  string          `json:"run,omitempty"`
	Body json.RawMessage `json:"body"`
}

func newLogLine(e audit.Entry) logLine {
	line := logLine{Seq: e.Leaf.Seq, Time: e.Leaf.Time, Type: e.Leaf.Type, Run: e.Leaf.Run, Body: e.Side.Body}
	if e.Erased {
		line.Body = json.RawMessage("null")
	}
	return line
}

func (b *backend) logEntries(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	from, err := number(d, "from")
	if err != nil {
		return nil, err
	}
	limit, _ := d.Get("limit").(int)
	switch {
	case limit == 0:
		limit = defaultEntries
	case limit < 0 || limit > maxEntries:
		return nil, invalid("limit", "wants 1 to 1000")
	}
	run := text(d, "run")
	if run != "" {
		if _, err := sealed.ParseRunID(run); err != nil {
			return nil, err
		}
	}
	l, err := b.auditLog(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	matches := func(e audit.Entry) bool {
		return (run == "" || e.Leaf.Run == run) && matchType(text(d, "type"), e.Leaf.Type)
	}
	lines, n, next, err := pageEntries(ctx, l, from, limit, matches)
	if err != nil {
		return nil, err
	}
	return map[string]any{"entries": lines, "count": n, "next": strconv.FormatUint(next, 10)}, nil
}

// pageEntries returns up to limit matching entries as JSON lines and where the
// next page begins. It reads maxScanned entries at most, and no more at first
// than a page of matching ones needs.
func pageEntries(ctx context.Context, l *audit.Log, from uint64, limit int, matches func(audit.Entry) bool) (lines string, n int, next uint64, err error) {
	var out strings.Builder
	enc := json.NewEncoder(&out)
	next = from
	for size := limit; next < from+maxScanned; size = min(2*size, maxEntries) {
		entries, err := l.Entries(ctx, next, size)
		if err != nil {
			return "", 0, 0, err
		}
		if len(entries) == 0 {
			break
		}
		for _, e := range entries {
			next = e.Leaf.Seq + 1
			if !matches(e) {
				continue
			}
			if err := enc.Encode(newLogLine(e)); err != nil {
				return "", 0, 0, fmt.Errorf("encoding entry: %w", err)
			}
			if n++; n == limit {
				return out.String(), n, next, nil
			}
		}
	}
	return out.String(), n, next, nil
}

func matchType(pattern, typ string) bool {
	if family, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(typ, family)
	}
	return pattern == "" || pattern == typ
}

func (b *backend) logEntry(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	seq, err := number(d, "seq")
	if err != nil {
		return nil, err
	}
	l, err := b.auditLog(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	e, err := l.Entry(ctx, seq)
	if errors.Is(err, audit.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"leaf": string(e.Raw), "body": string(e.Side.Body), "salt": base64.StdEncoding.EncodeToString(e.Side.Salt), "erased": e.Erased,
	}, nil
}

func (b *backend) logProof(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	old, err := number(d, "old")
	if err != nil {
		return nil, err
	}
	head, proof, err := b.consistency(ctx, req.Storage, old)
	if errors.Is(err, audit.ErrNotFound) {
		return nil, invalid("old", "the log is smaller")
	}
	if err != nil {
		return nil, err
	}
	doc, err := json.Marshal(proof)
	if err != nil {
		return nil, fmt.Errorf("encoding proof: %w", err)
	}
	return map[string]any{"checkpoint": string(head), "proof": string(doc)}, nil
}

// consistency returns the newest checkpoint and the proof, base64 std hashes,
// that the tree of size old is a prefix of it. It matches audit.ErrNotFound
// when the log is smaller.
func (b *backend) consistency(ctx context.Context, s logical.Storage, old uint64) (head []byte, proof []string, err error) {
	l, err := b.auditLog(ctx, s)
	if err != nil {
		return nil, nil, err
	}
	keys, err := b.engineKeys(ctx, s)
	if err != nil {
		return nil, nil, err
	}
	verifier, err := note.NewVerifier(keys.logVerifier)
	if err != nil {
		return nil, nil, fmt.Errorf("opening checkpoint: %w", err)
	}
	if head, err = l.Checkpoint(ctx); err != nil {
		return nil, nil, err
	}
	cp, err := audit.OpenCheckpoint(head, verifier)
	if err != nil {
		return nil, nil, fmt.Errorf("opening checkpoint: %w", err)
	}
	hashes, err := l.ConsistencyProof(ctx, old, uint64(cp.Size))
	if err != nil {
		return nil, nil, err
	}
	proof = []string{}
	for _, h := range hashes {
		proof = append(proof, base64.StdEncoding.EncodeToString(h[:]))
	}
	return head, proof, nil
}

// number parses an unsigned decimal field; not set is 0.
func number(d *framework.FieldData, field string) (uint64, error) {
	s := text(d, field)
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 62)
	if err != nil {
		return 0, invalid(field, "wants a number")
	}
	return n, nil
}
