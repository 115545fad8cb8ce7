package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"sealed.dev/sealed/internal/sealed"
)

// Hash is a hash of the tree: RFC 6962 with SHA-256.
type Hash = tlog.Hash

const (
	// MaxLeaf is the largest leaf, in bytes.
	MaxLeaf = 2 << 10

	maxType     = 64
	leafVersion = 1
)

// A Leaf is the public header of one entry.
type Leaf struct {
	Seq  uint64
	Time time.Time // UTC; never before that of the entry before
	Type string
	Run  string            // ULID, or empty when the event belongs to no run
	Body [sha256.Size]byte // Side.Digest of body and salt
}

// Marshal returns the canonical bytes of l, which the tree holds.
func (l Leaf) Marshal() []byte {
	return fmt.Appendf(nil, `{"v":%d,"seq":%d,"time":"%s","type":"%s","run":"%s","body":"%x"}`,
		leafVersion, l.Seq, l.Time.UTC().Format(time.RFC3339Nano), l.Type, l.Run, l.Body)
}

// ParseLeaf reads the canonical bytes of a leaf and refuses every other form.
func ParseLeaf(data []byte) (Leaf, error) {
	var in struct {
		V    int    `json:"v"`
		Seq  uint64 `json:"seq"`
		Time string `json:"time"`
		Type string `json:"type"`
		Run  string `json:"run"`
		Body string `json:"body"`
	}
	if len(data) > MaxLeaf {
		return Leaf{}, fmt.Errorf("parsing leaf: more than %d bytes", MaxLeaf)
	}
	if err := json.Unmarshal(data, &in); err != nil {
		return Leaf{}, errors.New("parsing leaf: malformed")
	}
	if in.V != leafVersion {
		return Leaf{}, fmt.Errorf("parsing leaf: version %d, want %d", in.V, leafVersion)
	}
	t, err := time.Parse(time.RFC3339Nano, in.Time)
	if err != nil {
		return Leaf{}, errors.New("parsing leaf: malformed time")
	}
	if err := errors.Join(checkType(in.Type), checkRun(in.Run)); err != nil {
		return Leaf{}, fmt.Errorf("parsing leaf: %w", err)
	}
	l := Leaf{Seq: in.Seq, Time: t.UTC(), Type: in.Type, Run: in.Run}
	sum, err := hex.DecodeString(in.Body)
	if err != nil || len(sum) != len(l.Body) {
		return Leaf{}, errors.New("parsing leaf: malformed body hash")
	}
	l.Body = [sha256.Size]byte(sum)
	if string(l.Marshal()) != string(data) {
		return Leaf{}, errors.New("parsing leaf: not in its one allowed form")
	}
	return l, nil
}

// checkType refuses names that are not lower-case words joined by dots.
func checkType(s string) error {
	if len(s) > maxType {
		return fmt.Errorf("event type has more than %d bytes", maxType)
	}
	for word := range strings.SplitSeq(s, ".") {
		if word == "" || strings.Trim(word, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
			return errors.New("event type is not lower-case words joined by dots")
		}
	}
	return nil
}

// checkRun refuses what is neither empty nor a ULID in its canonical form.
func checkRun(s string) error {
	if s == "" {
		return nil
	}
	if _, err := sealed.ParseRunID(s); err != nil {
		return errors.New("run is not a ULID")
	}
	return nil
}

// marshalBundle returns the entry bundle of leaves (C2SP tlog-tiles, "Log entries").
func marshalBundle(leaves [][]byte) []byte {
	var out []byte
	for _, leaf := range leaves {
		out = binary.BigEndian.AppendUint16(out, uint16(len(leaf)))
		out = append(out, leaf...)
	}
	return out
}

// ParseBundle splits an entry bundle into its leaves, which alias data. It does
// not parse the leaves.
func ParseBundle(data []byte) ([][]byte, error) {
	var leaves [][]byte
	for len(data) > 0 {
		if len(data) < 2 {
			return nil, errors.New("parsing entry bundle: cut off in a length")
		}
		n := int(binary.BigEndian.Uint16(data))
		if data = data[2:]; n > len(data) {
			return nil, errors.New("parsing entry bundle: cut off in a leaf")
		}
		if n > MaxLeaf {
			return nil, fmt.Errorf("parsing entry bundle: leaf of more than %d bytes", MaxLeaf)
		}
		if len(leaves) == tileWidth {
			return nil, fmt.Errorf("parsing entry bundle: more than %d leaves", tileWidth)
		}
		leaves = append(leaves, data[:n:n])
		data = data[n:]
	}
	return leaves, nil
}
