package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/term"
	"gopkg.in/yaml.v3"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// An app is what every command shares: streams, settings, and how to reach
// the engine. Settings come from flags, then the environment, then the
// configuration file, then defaults.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string

	addr, caFile, mount, output, devDir, trustFile, libexec string
	quiet                                                   bool
	lost                                                    error // of the first write to stdout that failed
}

// A fileConfig is $XDG_CONFIG_HOME/sealed/config.yaml.
type fileConfig struct {
	VaultAddr string `yaml:"vault_addr"`
	CAFile    string `yaml:"ca_file"`
	Mount     string `yaml:"mount"`
	Trust     string `yaml:"trust_file"`
	Output    string `yaml:"output"`
	Libexec   string `yaml:"libexec"` // directory of sealed-init and sealed
}

// defaultTrustFile is where `sealedctl install` puts the trust file.
const defaultTrustFile = "/etc/sealed/trust.json"

func newApp(stdin io.Reader, stdout, stderr io.Writer) *app {
	return &app{stdin: stdin, stdout: stdout, stderr: stderr, getenv: os.Getenv}
}

// settle fills in what flags left empty.
func (a *app) settle() error {
	file, err := readConfig(a.configPath())
	if err != nil {
		return err
	}
	pick := func(dst *string, values ...string) {
		for _, v := range append([]string{*dst}, values...) {
			if v != "" {
				*dst = v
				return
			}
		}
	}
	pick(&a.addr, a.getenv("SEALED_VAULT_ADDR"), a.getenv("VAULT_ADDR"), file.VaultAddr)
	pick(&a.caFile, a.getenv("SEALED_CA_FILE"), a.getenv("VAULT_CACERT"), file.CAFile)
	pick(&a.mount, a.getenv("SEALED_MOUNT"), file.Mount, "sealed")
	pick(&a.trustFile, a.getenv("SEALED_TRUST_FILE"), file.Trust, defaultTrustFile)
	pick(&a.libexec, a.getenv("SEALED_LIBEXEC"), file.Libexec, "/usr/libexec/sealed")
	pick(&a.output, a.getenv("SEALED_OUTPUT"), file.Output, "table")
	pick(&a.devDir, a.getenv("SEALED_DEV_DIR"), filepath.Join(a.stateDir(), "dev"))
	if a.output != "table" && a.output != "json" && a.output != "yaml" {
		return usagef("--output wants table, json or yaml")
	}
	return nil
}

func (a *app) configPath() string {
	base := a.getenv("XDG_CONFIG_HOME")
	if base == "" {
		base = filepath.Join(a.getenv("HOME"), ".config")
	}
	return filepath.Join(base, "sealed", "config.yaml")
}

func readConfig(path string) (fileConfig, error) {
	var c fileConfig
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("reading configuration: %w", err)
	}
	defer func() { _ = f.Close() }()
	dec := yaml.NewDecoder(f)
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return c, fmt.Errorf("reading configuration %s: %w: %w", path, sealed.ErrInvalid, err)
	}
	return c, nil
}

// stateDir is where runs and the development stack keep their files. For root
// it is a directory through which the uids of runs can pass, which root's home
// is not.
func (a *app) stateDir() string {
	base := a.getenv("XDG_STATE_HOME")
	if base == "" && os.Geteuid() == 0 {
		base = "/var/lib"
	}
	if base == "" {
		base = filepath.Join(a.getenv("HOME"), ".local", "state")
	}
	return filepath.Join(base, "sealed")
}

// token returns the operator's own token: VAULT_TOKEN, or else ~/.vault-token.
// A token is never a flag: flags are seen by every process.
func (a *app) token() (string, error) {
	token := a.getenv("VAULT_TOKEN")
	if token == "" {
		b, err := os.ReadFile(filepath.Join(a.getenv("HOME"), ".vault-token"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("reading the Vault token: %w", err)
		}
		token = strings.TrimSpace(string(b))
	}
	if token == "" {
		return "", &hintError{err: fmt.Errorf("no Vault token: %w", sealed.ErrDenied), hint: "log in with `vault login`, or set VAULT_TOKEN"}
	}
	return token, nil
}

// client returns a client of Vault with the operator's token.
func (a *app) client(context.Context) (*vaultclient.Client, error) {
	if a.addr == "" {
		return nil, &hintError{err: fmt.Errorf("no Vault address: %w", sealed.ErrInvalid), hint: "set VAULT_ADDR, or run: eval \"$(sealedctl dev env)\""}
	}
	token, err := a.token()
	if err != nil {
		return nil, err
	}
	return newClient(a.addr, a.caFile, token)
}

// engine returns the engine at the mount, with the operator's token.
func (a *app) engine(ctx context.Context) (*vaultclient.Engine, error) {
	c, err := a.client(ctx)
	if err != nil {
		return nil, err
	}
	return c.Engine(a.mount), nil
}

func newClient(addr, caFile, token string) (*vaultclient.Client, error) {
	var ca []byte
	if caFile != "" {
		var err error
		if ca, err = os.ReadFile(caFile); err != nil {
			return nil, fmt.Errorf("reading the CA of Vault: %w", err)
		}
	}
	return vaultclient.New(addr, ca, token)
}

// terminal reports whether stderr is a terminal.
func (a *app) terminal() bool {
	f, ok := a.stderr.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// talk writes a line for people; --quiet drops it.
func (a *app) talk(format string, args ...any) {
	if !a.quiet {
		_, _ = fmt.Fprintf(a.stderr, format+"\n", args...)
	}
}
