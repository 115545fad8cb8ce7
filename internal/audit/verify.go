package audit

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// Options say what an export is verified against.
type Options struct {
	// VerifierKey is the log's note verifier key ("origin+hash+key"). It must come
	// from elsewhere than the export. Required.
	VerifierKey string
	// PreviousKeys are verifier keys that the log has had. They are good for pinned
	// checkpoints and those in records, never for the export's own checkpoint.
	PreviousKeys []string
	// PinFile holds the last checkpoint seen of this log. It must be a prefix. It is
	// created or replaced on success. Empty pins nothing.
	PinFile string
	// Pinned is a checkpoint seen earlier, in addition to PinFile.
	Pinned []byte
	// Witnesses whose signatures count.
	Witnesses []note.Verifier
	// Partial accepts that records are absent. The report lists them.
	Partial bool
}

// A Report says what was verified. It is complete only when there was no error.
type Report struct {
	Origin      string   `json:"origin"`
	Size        uint64   `json:"size"`
	Root        Hash     `json:"root"`
	Unwitnessed bool     `json:"unwitnessed"` // no configured witness has signed
	Witnesses   []string `json:"witnesses"`
	UnknownSigs int      `json:"unknown_signatures"` // by keys that were not given
	FirstSeen   bool     `json:"first_seen"`         // nothing was pinned: truncation would not show
	PinnedSize  uint64   `json:"pinned_size"`        // of the largest pinned checkpoint
	Records     []string `json:"records"`            // runs whose record was verified
	Erased      []uint64 `json:"erased"`
	Skewed      []uint64 `json:"skewed"` // entries at which the clock had gone backwards
	Missing     []string `json:"missing"`
	Warnings    []string `json:"warnings"`
}

// String returns the report for a person, in a few lines.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d entries, root %s\n", strconv.QuoteToASCII(r.Origin), r.Size, r.Root)
	if r.Unwitnessed {
		b.WriteString("unwitnessed: no witness vouches that others see the same log\n")
	} else {
		fmt.Fprintf(&b, "witnessed by %q\n", r.Witnesses)
	}
	if r.FirstSeen {
		b.WriteString("first seen: no earlier checkpoint shows whether it was cut back\n")
	} else {
		fmt.Fprintf(&b, "continues the pinned checkpoint of %d entries\n", r.PinnedSize)
	}
	fmt.Fprintf(&b, "%d records verified, %d entries erased, %d with a clock that went back\n", len(r.Records), len(r.Erased), len(r.Skewed))
	for _, path := range r.Missing {
		fmt.Fprintf(&b, "not here: %s\n", path)
	}
	for _, warning := range r.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", warning)
	}
	return b.String()
}

// A Failure is one thing that is wrong with an export.
type Failure struct {
	Seq  int64  // entry, or -1 if it concerns none in particular
	Path string // file, as far as one is to blame
	Err  error
}

func (f *Failure) Error() string {
	var where []string
	if f.Seq >= 0 {
		where = append(where, "entry "+strconv.FormatInt(f.Seq, 10))
	}
	if f.Path != "" {
		where = append(where, strconv.QuoteToASCII(f.Path))
	}
	return strings.Join(append(where, f.Err.Error()), ": ")
}

func (f *Failure) Unwrap() error { return f.Err }

const (
	maxFailures   = 50
	noSeq         = int64(-1)
	maxBundleFile = tileWidth * (2 + MaxLeaf)
)

// VerifyDir verifies an exported log from its files alone: it contacts nobody and
// runs nothing. Any error means that the export is not to be trusted; it joins up
// to 50 *Failure values, the first first. The pin file changes only on success.
func VerifyDir(dir string, o Options) (Report, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Report{}, fmt.Errorf("opening export: %w", err)
	}
	defer root.Close()
	pin, err := readPin(o.PinFile)
	if err != nil {
		return Report{}, err
	}
	v := &verifier{fsys: root.FS(), opts: o, pin: pin}
	report, err := v.verify()
	if err != nil {
		return report, fmt.Errorf("verifying %s: %w", dir, err)
	}
	return report, writePin(o.PinFile, v.head)
}

// checks names what a test may switch off, to show that it would be missed.
type checks uint

const (
	checkHash checks = 1 << iota
	checkSeq
	checkTime
	checkSide
	checkPin
	checkRecordKey
	checkRecordDigest
	checkExtra
	checkRoot
)

// A verifier verifies one export.
type verifier struct {
	fsys fs.FS
	opts Options
	pin  []byte
	off  checks

	log      note.Verifier
	previous []note.Verifier
	head     []byte
	size     int64
	report   Report
	failures []error

	last    Leaf              // the newest leaf so far
	missing map[uint64]string // entries without side, and their types
	named   map[uint64]uint64 // erased entry → the entry.erased that names it
	runs    map[string]*runFacts
}

// runFacts is what the log says of one run.
type runFacts struct {
	claims   []fact // run_key
	finishes []fact // record_sha256, empty when there is no record
}

type fact struct {
	seq   uint64
	value string
}

// fail notes a failure. verify goes on, so that one report names all of them.
func (v *verifier) fail(seq int64, path string, err error) {
	if len(v.failures) < maxFailures {
		v.failures = append(v.failures, &Failure{Seq: seq, Path: path, Err: err})
	}
}

func (v *verifier) warn(format string, args ...any) {
	v.report.Warnings = append(v.report.Warnings, fmt.Sprintf(format, args...))
}

// verify runs all checks, in an order in which each rests on those before.
func (v *verifier) verify() (Report, error) {
	v.missing, v.named, v.runs = map[uint64]string{}, map[uint64]uint64{}, map[string]*runFacts{}
	if err := v.openHead(); err != nil {
		return Report{}, err
	}
	v.checkFiles()
	if v.checkEntries() {
		v.checkErased()
		v.checkPins()
		v.checkRecords()
	}
	if len(v.failures) > 0 {
		return v.report, errors.Join(v.failures...)
	}
	return v.report, nil
}

// openHead verifies the checkpoint's signatures.
func (v *verifier) openHead() error {
	var err error
	if v.log, err = note.NewVerifier(v.opts.VerifierKey); err != nil {
		return fmt.Errorf("reading verifier key: %w", err)
	}
	for _, key := range v.opts.PreviousKeys {
		old, err := note.NewVerifier(key)
		if err != nil {
			return fmt.Errorf("reading previous verifier key: %w", err)
		}
		v.previous = append(v.previous, old)
	}
	if v.head, err = v.read(checkpointPath, maxCheckpoint); err != nil {
		return &Failure{noSeq, checkpointPath, err}
	}
	c, err := OpenCheckpoint(v.head, v.log, v.opts.Witnesses...)
	if err != nil {
		return &Failure{noSeq, checkpointPath, err}
	}
	v.size = int64(c.Size)
	v.report = Report{Origin: c.Origin, Size: c.Size, Root: c.Root,
		Witnesses: c.Witnesses, Unwitnessed: len(c.Witnesses) == 0, UnknownSigs: c.Unknown}
	return nil
}

// read returns a regular file of at most limit bytes.
func (v *verifier) read(path string, limit int64) ([]byte, error) {
	f, err := v.open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading: %w", err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("reading: more than %d bytes", limit)
	}
	return data, nil
}

// open opens a regular file. It looks before it opens: opening a FIFO would hang.
func (v *verifier) open(path string) (fs.File, error) {
	info, err := fs.Lstat(v.fsys, path)
	if err != nil {
		return nil, fmt.Errorf("reading: %w", cause(err))
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("reading: not a regular file")
	}
	f, err := v.fsys.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading: %w", cause(err))
	}
	return f, nil
}

// cause drops the path, which a Failure names.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// checkFiles refuses files that do not belong to an export of this size: what
// nobody checks, somebody could believe.
func (v *verifier) checkFiles() {
	err := fs.WalkDir(v.fsys, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.IsDir() && v.off&checkExtra == 0 && (!d.Type().IsRegular() || !v.belongs(path)) {
			v.fail(noSeq, path, errors.New("does not belong to the export"))
		}
		return nil
	})
	if err != nil {
		v.fail(noSeq, "", fmt.Errorf("listing files: %w", err))
	}
}

func (v *verifier) belongs(path string) bool {
	if path == checkpointPath {
		return true
	}
	if t, err := parseTilePath(path); err == nil {
		return t.W == widthIn(t, v.size)
	}
	if name, ok := strings.CutPrefix(path, "sides/"); ok {
		seq, err := strconv.ParseInt(strings.TrimSuffix(name, ".json"), 10, 64)
		return err == nil && seq >= 0 && seq < v.size && sidePath(seq) == path
	}
	_, ok := recordOf(path)
	return ok
}

func sidePath(seq int64) string { return fmt.Sprintf("sides/%d.json", seq) }

// checkErased compares the entries without side with those that are said to be erased.
func (v *verifier) checkErased() {
	var seqs []uint64
	for seq, typ := range v.missing {
		if _, ok := v.named[seq]; !ok && v.off&checkSide == 0 {
			v.fail(int64(seq), sidePath(int64(seq)), errors.New("is missing, and no entry.erased names it"))
		} else if typ == TypeErased || typ == TypeClaimed || typ == TypeFinished {
			v.fail(int64(seq), sidePath(int64(seq)), fmt.Errorf("is missing, but a %s is never erased", typ))
		}
		seqs = append(seqs, seq)
	}
	slices.Sort(seqs)
	v.report.Erased = seqs
	// The order of a map is not the order of the log.
	slices.SortStableFunc(v.failures, func(a, b error) int { return cmp.Compare(seqOf(a), seqOf(b)) })
	for seq, by := range v.named {
		if _, ok := v.missing[seq]; !ok {
			v.warn("entry %d is named erased by entry %d, but its body is here", seq, by)
		}
	}
	slices.Sort(v.report.Warnings)
}

func seqOf(err error) int64 {
	if f, ok := err.(*Failure); ok {
		return f.Seq
	}
	return noSeq
}

// member returns a string member of a body, and whether it is there.
func member(body []byte, name string) (string, bool) {
	var in map[string]json.RawMessage
	var s string
	if json.Unmarshal(body, &in) != nil || in[name] == nil || bytes.Equal(in[name], []byte("null")) {
		return "", false
	}
	return s, json.Unmarshal(in[name], &s) == nil
}

// sameDigest reports whether sum is the SHA-256 that hex names.
func sameDigest(sum [sha256.Size]byte, hex string) bool { return fmt.Sprintf("%x", sum) == hex }
