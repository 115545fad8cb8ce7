package sandboxinit

import (
	"fmt"
	"io"
	"os"

	"sealed.dev/sealed/internal/sealed"
)

// readTrust reads the trust file from the inherited descriptor, which stays
// open: the attestor compares that very descriptor with the root-owned file it
// is configured with. The digest goes into the claim.
func readTrust(f *os.File) (sealed.TrustFile, sealed.Digest, error) {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, sealed.MaxTrustFile+1))
	if err != nil {
		return sealed.TrustFile{}, "", fmt.Errorf("reading trust file: %w", err)
	}
	t, err := sealed.ParseTrustFile(b)
	if err != nil {
		return t, "", fmt.Errorf("reading trust file: %w", err)
	}
	return t, sealed.DigestOf(sealed.DomainTrust, b), nil
}

// readBoot reads the one Boot document and closes the pipe. It blocks until
// the launcher has registered this process with the attestor.
func readBoot(f *os.File) (sealed.Boot, error) {
	var boot sealed.Boot
	b, err := io.ReadAll(io.LimitReader(f, sealed.MaxBoot+1))
	_ = f.Close()
	if err != nil {
		return boot, fmt.Errorf("reading boot document: %w", err)
	}
	if err := sealed.Decode(b, sealed.MaxBoot, &boot); err != nil {
		return boot, fmt.Errorf("reading boot document: %w", err)
	}
	if _, err := sealed.ParseRunID(string(boot.Run)); err != nil {
		return boot, err
	}
	if len(boot.Argv) == 0 || (boot.Ticket == "") != (boot.Mode == sealed.ModeSandboxed) {
		return boot, fmt.Errorf("reading boot document: no command, or no ticket: %w", sealed.ErrInvalid)
	}
	return boot, nil
}
