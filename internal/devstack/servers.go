package devstack

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/semver"

	"sealed.dev/sealed/internal/sealed"
)

// A Server is a program of the stack that is not ours. It is taken from PATH
// if it is new enough, else built from a nested module of this repository
// that pins it, and kept in the cache under a name that names the pins.
type Server struct {
	Name string // of the command: vault, spire-server, spire-agent

	stack   string   // folder of the nested module below test/stack
	module  string   // that is required there
	pkg     string   // to build
	flags   []string // of go build
	cgo     bool     // wants a C compiler
	minimum string   // version that PATH must offer
	asks    string   // argument that makes it print its version
}

// Servers lists the servers that a stack with an identity starts, "embedded"
// or "spire".
func Servers(identity string) []Server {
	const spire = "github.com/spiffe/spire"
	vault := Server{
		Name: "vault", stack: "vault", module: "github.com/hashicorp/vault", pkg: "github.com/hashicorp/vault",
		flags: []string{"-tags", "minimal"}, minimum: "v1.21.0", asks: "version",
	}
	if identity != IdentitySPIRE {
		return []Server{vault}
	}
	return []Server{
		vault,
		{Name: "spire-server", stack: "spire", module: spire, pkg: spire + "/cmd/spire-server", cgo: true, minimum: "v1.11.0", asks: "--version"},
		{Name: "spire-agent", stack: "spire", module: spire, pkg: spire + "/cmd/spire-agent", minimum: "v1.11.0", asks: "--version"},
	}
}

// CacheName is the file name of the server in <cache>/bin:
//
//	<name>-<version>-<first 12 hex digits of SHA-256 over go.mod ‖ go.sum>
//
// of the nested module below root, the directory of this repository. Another
// pin is another name, so a stale binary is never taken.
func (s Server) CacheName(root string) (string, error) {
	dir := filepath.Join(root, "test", "stack", s.stack)
	mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return "", fmt.Errorf("naming %s: %w", s.Name, err)
	}
	sum, err := os.ReadFile(filepath.Join(dir, "go.sum"))
	if err != nil {
		return "", fmt.Errorf("naming %s: %w", s.Name, err)
	}
	f, err := modfile.ParseLax("go.mod", mod, nil)
	if err != nil {
		return "", fmt.Errorf("naming %s: %w", s.Name, err)
	}
	h := sha256.New()
	h.Write(mod)
	h.Write(sum)
	for _, r := range f.Require {
		if r.Mod.Path == s.module {
			return fmt.Sprintf("%s-%s-%s", s.Name, r.Mod.Version[1:], hex.EncodeToString(h.Sum(nil))[:12]), nil
		}
	}
	return "", fmt.Errorf("naming %s: go.mod does not require %s: %w", s.Name, s.module, sealed.ErrInvalid)
}

// ErrNoCompiler means that a server has to be built which wants a C compiler,
// and there is none. SPIRE's keeps its entries in SQLite.
var ErrNoCompiler = errors.New("building spire-server needs a C compiler (Debian, Ubuntu: apt install gcc libc6-dev; Fedora: dnf install gcc)")

// findServers returns the servers of a stack, and builds what is not there. It
// matches ErrNoCompiler before anything is built.
func findServers(ctx context.Context, cfg Config) ([]version, error) {
	servers := Servers(cfg.Identity)
	found := make([]version, len(servers))
	for i, s := range servers {
		v, err := s.find(ctx, cfg)
		if errors.Is(err, sealed.ErrNotFound) && s.cgo && !hasCompiler() {
			err = ErrNoCompiler
		}
		if err != nil && !errors.Is(err, sealed.ErrNotFound) {
			return nil, err
		}
		found[i] = v
	}
	for i, s := range servers {
		if found[i].Path != "" {
			continue
		}
		v, err := s.make(ctx, cfg)
		if err != nil {
			return nil, err
		}
		found[i] = v
	}
	return found, nil
}

// make builds a server into the cache.
func (s Server) make(ctx context.Context, cfg Config) (version, error) {
	if err := cfg.findModule(); err != nil {
		return version{}, err
	}
	path, err := s.cached(cfg)
	if err == nil {
		err = s.build(ctx, cfg, path)
	}
	if err != nil {
		return version{}, err
	}
	return s.find(ctx, cfg)
}

// hasCompiler looks for the compiler that the go command would call.
func hasCompiler() bool {
	cc, _, _ := strings.Cut(cmp.Or(os.Getenv("CC"), "gcc"), " ")
	_, err := exec.LookPath(cc)
	return err == nil
}

// find returns the path of a server, from PATH or from the cache. The error
// matches sealed.ErrNotFound where it has to be built.
func (s Server) find(ctx context.Context, cfg Config) (version, error) {
	if path, err := exec.LookPath(s.Name); err == nil && filepath.IsAbs(path) {
		v, err := s.version(ctx, path)
		if err == nil && semver.Compare(v, s.minimum) >= 0 {
			return version{Name: s.Name, Version: v, Path: path}, nil
		}
	}
	path, err := s.cached(cfg)
	if err != nil {
		return version{}, err
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return version{}, fmt.Errorf("finding %s: neither in PATH nor in the cache: %w", s.Name, sealed.ErrNotFound)
	}
	v, err := s.version(ctx, path)
	if err != nil {
		return version{}, err
	}
	return version{Name: s.Name, Version: v, Path: path}, nil
}

// cached is where a server is once it was built.
func (s Server) cached(cfg Config) (string, error) {
	if err := cfg.findModule(); err != nil {
		return "", err
	}
	name, err := s.CacheName(cfg.Module)
	return filepath.Join(cfg.CacheDir, "bin", name), err
}

func (s Server) version(ctx context.Context, path string) (string, error) {
	cmd := exec.CommandContext(ctx, path, s.asks)
	cmd.Env = []string{"HOME=/"}
	out, err := cmd.CombinedOutput() // SPIRE prints its version to stderr
	if err != nil {
		return "", fmt.Errorf("asking %s for its version: %w", path, err)
	}
	return parseVersion(string(out))
}

var versionRE = regexp.MustCompile(`(?:^|[ \n])v?(\d+\.\d+\.\d+)(-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?(?:[ ,\n]|$)`)

// parseVersion finds the first semantic version in what "vault version" and
// "spire-server --version" print, in canonical form with the leading v:
//
//	Vault v1.21.0 (818ca8b1…), built 2025-10-21T19:21:22Z
//	1.11.0-dev-unk
//
// SPIRE built outside its release calls itself X-dev-…: that is X with changes,
// not something before X, so this suffix is dropped.
func parseVersion(out string) (string, error) {
	m := versionRE.FindStringSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("parsing version: none found: %w", sealed.ErrInvalid)
	}
	v := "v" + m[1]
	if pre := m[2]; pre != "" && pre != "-dev" && !devRE.MatchString(pre) {
		v += pre
	}
	return semver.Canonical(v), nil
}

var devRE = regexp.MustCompile(`^-dev-[0-9A-Za-z]+$`)
