package audit

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
)

const recordSuffix = ".dsse.json"

func recordPath(run string) string { return "records/" + run + recordSuffix }

func transcriptPath(run, stream string) string { return "records/" + run + "/" + stream + ".log" }

// recordOf returns the run that a file below records/ is of.
func recordOf(path string) (string, bool) {
	rest, ok := strings.CutPrefix(path, "records/")
	if !ok {
		return "", false
	}
	run, ok := strings.CutSuffix(rest, recordSuffix)
	if !ok {
		run, _, _ = strings.Cut(rest, "/")
	}
	if run == "" || checkRun(run) != nil {
		return "", false
	}
	return run, path == recordPath(run) || path == transcriptPath(run, "stdout") || path == transcriptPath(run, "stderr")
}

// checkRecords checks the record of every run that the log says has left one, and
// refuses records that it does not know.
func (v *verifier) checkRecords() {
	for _, run := range slices.Sorted(maps.Keys(v.runs)) {
		facts := v.runs[run]
		if len(facts.claims) > 1 {
			v.warn("run %s was claimed %d times, last by entry %d", run, len(facts.claims), facts.claims[len(facts.claims)-1].seq)
		}
		if len(facts.finishes) > 1 {
			v.warn("run %s was finished %d times, last by entry %d", run, len(facts.finishes), facts.finishes[len(facts.finishes)-1].seq)
		}
		if len(facts.finishes) == 0 {
			continue
		}
		finish := facts.finishes[len(facts.finishes)-1]
		if finish.value == "" {
			v.warn("run %s left no record: entry %d was not signed by the run", run, finish.seq)
			continue
		}
		v.checkRecord(run, facts.claims, finish)
	}
	v.checkStrays()
}

// checkStrays refuses records and transcripts of runs that the log does not vouch for.
func (v *verifier) checkStrays() {
	err := fs.WalkDir(v.fsys, "records", func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path == "records" {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		run, _ := recordOf(path)
		facts := v.runs[run]
		if facts == nil || len(facts.finishes) == 0 || facts.finishes[len(facts.finishes)-1].value == "" {
			v.fail(noSeq, path, errors.New("no run.finished entry vouches for it"))
		} else if path != recordPath(run) && !slices.Contains(v.report.Records, run) {
			v.fail(noSeq, path, errors.New("no verified record vouches for it"))
		}
		return nil
	})
	if err != nil {
		v.fail(noSeq, "records", fmt.Errorf("listing: %w", err))
	}
}

// checkRecord checks one record against the entries that name it.
func (v *verifier) checkRecord(run string, claims []fact, finish fact) {
	path, seq := recordPath(run), int64(finish.seq)
	envelope, err := v.read(path, MaxRecord)
	if errors.Is(err, fs.ErrNotExist) && v.opts.Partial {
		v.report.Missing = append(v.report.Missing, path)
		return
	}
	if err != nil {
		v.fail(seq, path, err)
		return
	}
	if !sameDigest(sha256.Sum256(envelope), finish.value) && v.off&checkRecordDigest == 0 {
		v.fail(seq, path, errors.New("is not the record that the entry has the digest of"))
		return
	}
	claim, key, err := runKey(claims, finish)
	if err != nil {
		v.fail(seq, path, err)
		return
	}
	stmt, err := OpenRecord(envelope, key)
	if err != nil && v.off&checkRecordKey == 0 {
		v.fail(int64(claim.seq), path, err)
		return
	}
	if stmt.Predicate.Run != run && v.off&checkRecordKey == 0 {
		v.fail(seq, path, errors.New("is of another run"))
		return
	}
	if err := v.checkSeen(stmt.Predicate, claim, finish); err != nil && v.off&checkRecordKey == 0 {
		v.fail(seq, path, err)
		return
	}
	v.report.Records = append(v.report.Records, run)
	for _, stream := range []string{"stdout", "stderr"} {
		v.checkTranscript(stmt, transcriptPath(run, stream), stream, seq)
	}
}

// runKey returns the key that the last claim before finish has bound. A claim may
// be in the log twice, because a log may hold what its caller was told had failed.
func runKey(claims []fact, finish fact) (fact, ed25519.PublicKey, error) {
	for _, claim := range slices.Backward(claims) {
		if claim.seq > finish.seq {
			continue
		}
		if err := strictBase64(claim.value); err != nil {
			return fact{}, nil, fmt.Errorf("run_key of entry %d: %w", claim.seq, err)
		}
		key, _ := base64.StdEncoding.DecodeString(claim.value)
		if len(key) != ed25519.PublicKeySize {
			return fact{}, nil, fmt.Errorf("run_key of entry %d is not an Ed25519 key", claim.seq)
		}
		return claim, key, nil
	}
	return fact{}, nil, errors.New("no run.claimed entry says whose key signs it")
}

// checkSeen compares the checkpoints that the run saw with the log: they are
// prefixes of it, in order, the first with its claim, the last before its finish.
func (v *verifier) checkSeen(p Predicate, claim, finish fact) error {
	atClaim, err := v.checkPrefix([]byte(p.ClaimCheckpoint))
	if err != nil {
		return fmt.Errorf("claim_checkpoint: %w", err)
	}
	atFinish, err := v.checkPrefix([]byte(p.FinishCheckpoint))
	if err != nil {
		return fmt.Errorf("finish_checkpoint: %w", err)
	}
	if atClaim.Size <= claim.seq || atFinish.Size < atClaim.Size || atFinish.Size > finish.seq {
		return fmt.Errorf("%w: the run saw %d and %d entries, was claimed at %d, finished at %d",
			ErrInconsistent, atClaim.Size, atFinish.Size, claim.seq, finish.seq)
	}
	return nil
}

// checkTranscript compares a transcript, if it is there, with its subject.
func (v *verifier) checkTranscript(stmt Statement, path, stream string, seq int64) {
	want, named := stmt.subject(stream)
	f, err := v.open(path)
	if errors.Is(err, fs.ErrNotExist) {
		if named {
			v.report.Missing = append(v.report.Missing, path)
		}
		return
	}
	if err != nil {
		v.fail(seq, path, err)
		return
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		v.fail(seq, path, fmt.Errorf("reading: %w", cause(err)))
		return
	}
	if !named || !sameDigest([sha256.Size]byte(h.Sum(nil)), want) {
		v.fail(seq, path, errors.New("is not what the record has the digest of"))
	}
}
