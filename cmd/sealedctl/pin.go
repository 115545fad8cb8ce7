package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/mod/sumdb/note"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// presentLimit bounds what happens when a run is over already.
const presentLimit = 2 * time.Second

// pinFile is where the last checkpoint that was seen of a log is kept. audit
// verify and runs share it.
func (a *app) pinFile(verifierKey string) (string, error) {
	sum := sha256.Sum256([]byte(verifierKey))
	pins := filepath.Join(a.stateDir(), "pins")
	err := os.MkdirAll(a.stateDir(), 0o711) // the uids of runs pass through
	if err == nil {
		err = os.MkdirAll(pins, 0o700)
	}
	if err != nil {
		return "", fmt.Errorf("remembering checkpoints: %w", err)
	}
	return filepath.Join(pins, hex.EncodeToString(sum[:8])+".checkpoint"), nil
}

// present shows the engine the last checkpoint that this user has seen, and
// remembers the newest if it is proven to continue that one. An engine whose
// storage was taken back to a snapshot learns of it so, and refuses; one that
// can't prove that its log only grew is not asked for anything. The first
// checkpoint is taken as it is, if the trust file's key has signed it. Runs that
// begin at the same time may leave the older of their checkpoints.
func (a *app) present(ctx context.Context, e *vaultclient.Engine) error {
	trust, err := readTrust(a.trustFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing can be remembered of a log whose key is not known
	}
	if err != nil {
		return err
	}
	key, err := note.NewVerifier(trust.LogKey)
	if err != nil {
		return fmt.Errorf("reading trust file %s: log key: %w", a.trustFile, sealed.ErrInvalid)
	}
	file, err := a.pinFile(trust.LogKey)
	if err != nil {
		return err
	}
	return compare(ctx, e, key, file)
}

// compare is present for the log of a key, with what is remembered in file.
func compare(ctx context.Context, e *vaultclient.Engine, key note.Verifier, file string) error {
	seen, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return firstSight(ctx, e, key, file)
	}
	if err != nil {
		return fmt.Errorf("reading the remembered checkpoint: %w", err)
	}
	head, proof, err := e.Seen(ctx, seen)
	if errors.Is(err, sealed.ErrConflict) {
		return &hintError{err: err, hint: "if you were told of that restore, delete " + file}
	}
	if err != nil {
		return err
	}
	if err := audit.CheckConsistency(seen, head, proof, key); err != nil {
		return fmt.Errorf("comparing the log with what was seen of it: %w", err)
	}
	return writePin(file, head)
}

// presentAfter remembers what a run has left in the log. The run is over, so what
// is wrong is said and changes nothing.
func (a *app) presentAfter(ctx context.Context, e *vaultclient.Engine) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), presentLimit)
	defer cancel()
	if err := a.present(ctx, e); err != nil {
		a.talk("sealed: warning: the log was not compared with what was seen of it: %v", err)
	}
}

func firstSight(ctx context.Context, e *vaultclient.Engine, key note.Verifier, file string) error {
	head, err := e.LogReader().Checkpoint(ctx)
	if err != nil {
		return err
	}
	if _, err := audit.OpenCheckpoint(head, key); err != nil {
		return fmt.Errorf("reading the log's checkpoint: %w", err)
	}
	return writePin(file, head)
}

// writePin replaces the remembered checkpoint, whole or not at all.
func writePin(file string, head []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".pin-*")
	if err != nil {
		return fmt.Errorf("remembering checkpoint: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // fails once it was renamed
	_, err = f.Write(head)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("remembering checkpoint: %w", err)
	}
	return nil
}
