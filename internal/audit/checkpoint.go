package audit

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	maxCheckpoint = 64 << 10
	maxTree       = 1 << 52 // entries; a JSON number holds it exactly
)

// ErrInconsistent says that two checkpoints are not of one log: neither tree is
// a prefix of the other, or the newer tree is the smaller.
var ErrInconsistent = errors.New("checkpoints are not consistent")

// ErrCheckpoint says that a checkpoint is malformed or not signed by the key
// that was asked for.
var ErrCheckpoint = errors.New("checkpoint refused")

// A Checkpoint is a parsed and verified head of a log.
type Checkpoint struct {
	Origin    string
	Size      uint64
	Root      Hash
	Witnesses []string // names of the witnesses whose signature was verified
	Unknown   int      // signatures by keys that the caller did not name
}

// OpenCheckpoint verifies a signed checkpoint. It must carry a valid signature
// by log, whose name must be its origin. Signatures by witnesses must be valid if
// present; signatures by other keys are counted and otherwise ignored, as
// C2SP signed-note demands. Every error matches ErrCheckpoint.
func OpenCheckpoint(msg []byte, log note.Verifier, witnesses ...note.Verifier) (Checkpoint, error) {
	c, err := openCheckpoint(msg, log, witnesses)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: %w", ErrCheckpoint, err)
	}
	return c, nil
}

func openCheckpoint(msg []byte, log note.Verifier, witnesses []note.Verifier) (Checkpoint, error) {
	if len(msg) > maxCheckpoint {
		return Checkpoint{}, errors.New("too large")
	}
	if err := strictSignatures(msg); err != nil {
		return Checkpoint{}, err
	}
	n, err := note.Open(msg, note.VerifierList(append([]note.Verifier{log}, witnesses...)...))
	if err != nil {
		return Checkpoint{}, err
	}
	// A witness alone would satisfy note.Open.
	var signed bool
	var names []string
	for _, sig := range n.Sigs {
		if sig.Name == log.Name() && sig.Hash == log.KeyHash() {
			signed = true
			continue
		}
		names = append(names, sig.Name)
	}
	if !signed {
		return Checkpoint{}, errors.New("not signed by the log's key")
	}
	c, err := parseCheckpoint(n.Text)
	if err != nil {
		return Checkpoint{}, err
	}
	if c.Origin != log.Name() {
		return Checkpoint{}, fmt.Errorf("origin %q is not the key's name %q", c.Origin, log.Name())
	}
	c.Witnesses, c.Unknown = names, len(n.UnverifiedSigs)
	return c, nil
}

// strictSignatures refuses what note.Open passes over: base64 with stray bits,
// and a second signature by one key, which it does not verify. Otherwise two
// different files would be the same checkpoint.
func strictSignatures(msg []byte) error {
	split := bytes.LastIndex(msg, []byte("\n\n"))
	if split < 0 {
		return errors.New("malformed note")
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(msg[split+2:])) {
		name, b64, _ := strings.Cut(strings.TrimPrefix(strings.TrimSuffix(line, "\n"), "— "), " ")
		sig, err := base64.StdEncoding.Strict().DecodeString(b64)
		if err != nil || len(sig) < 5 || base64.StdEncoding.EncodeToString(sig) != b64 {
			return errors.New("malformed signature line")
		}
		key := name + " " + string(sig[:4])
		if seen[key] {
			return errors.New("two signatures by one key")
		}
		seen[key] = true
	}
	return nil
}

// formatCheckpoint returns the text to sign (https://c2sp.org/tlog-checkpoint).
func formatCheckpoint(origin string, size int64, root Hash) string {
	return fmt.Sprintf("%s\n%d\n%s\n", origin, size, root)
}

// parseCheckpoint reads a checkpoint's text, without extension lines.
func parseCheckpoint(text string) (Checkpoint, error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[0] == "" || lines[3] != "" {
		return Checkpoint{}, errors.New("malformed checkpoint")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || size > maxTree {
		return Checkpoint{}, errors.New("malformed tree size")
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil {
		return Checkpoint{}, errors.New("malformed root hash")
	}
	if formatCheckpoint(lines[0], size, root) != text {
		return Checkpoint{}, errors.New("not in its one allowed form")
	}
	return Checkpoint{Origin: lines[0], Size: uint64(size), Root: root}, nil
}

// signCheckpoint returns the signed checkpoint of a tree.
func signCheckpoint(signer note.Signer, size int64, root Hash) ([]byte, error) {
	msg, err := note.Sign(&note.Note{Text: formatCheckpoint(signer.Name(), size, root)}, signer)
	if err != nil {
		return nil, fmt.Errorf("signing checkpoint: %w", err)
	}
	return msg, nil
}

// checkpointText returns the text of a signed checkpoint without verifying it:
// for the log's own storage only.
func checkpointText(msg []byte) (Checkpoint, error) {
	text, _, ok := strings.Cut(string(msg), "\n\n")
	if !ok {
		return Checkpoint{}, errors.New("malformed checkpoint")
	}
	return parseCheckpoint(text + "\n")
}

// CheckConsistency verifies both checkpoints with verifier and that the tree of
// old is a prefix of the tree of new, by a proof from [Log.ConsistencyProof]. The
// proof is empty when the sizes are equal or the old tree is empty. The error
// matches ErrCheckpoint or ErrInconsistent.
func CheckConsistency(old, new []byte, proof []Hash, verifier note.Verifier) error {
	a, err := OpenCheckpoint(old, verifier)
	if err != nil {
		return fmt.Errorf("opening old checkpoint: %w", err)
	}
	b, err := OpenCheckpoint(new, verifier)
	if err != nil {
		return fmt.Errorf("opening new checkpoint: %w", err)
	}
	if a.Size > b.Size {
		return fmt.Errorf("%w: the tree went from %d entries to %d", ErrInconsistent, a.Size, b.Size)
	}
	if a.Size == 0 {
		if len(proof) != 0 || a.Root != emptyRoot {
			return fmt.Errorf("%w: bad proof from the empty tree", ErrInconsistent)
		}
		return nil
	}
	if err := tlog.CheckTree(proof, int64(b.Size), b.Root, int64(a.Size), a.Root); err != nil {
		return fmt.Errorf("%w: %d entries are not a prefix of %d", ErrInconsistent, a.Size, b.Size)
	}
	return nil
}

// CheckInclusion verifies the checkpoint with verifier and that leaf is its entry
// number seq, by a proof from [Log.InclusionProof] for the checkpoint's size.
func CheckInclusion(checkpoint, leaf []byte, seq uint64, proof []Hash, verifier note.Verifier) error {
	c, err := OpenCheckpoint(checkpoint, verifier)
	if err != nil {
		return fmt.Errorf("opening checkpoint: %w", err)
	}
	if seq >= c.Size {
		return fmt.Errorf("checking inclusion: entry %d is not in a tree of %d", seq, c.Size)
	}
	if err := tlog.CheckRecord(proof, int64(c.Size), c.Root, int64(seq), tlog.RecordHash(leaf)); err != nil {
		return fmt.Errorf("checking inclusion of entry %d: %w", seq, err)
	}
	return nil
}
