package devstack

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/mod/modfile"

	"sealed.dev/sealed/internal/sealed"
)

const modulePath = "sealed.dev/sealed"

// Names of our own programs, as built from the repository.
const (
	binPlugin   = "vault-plugin-secrets-sealed"
	binAttestor = "spire-attestor-sealed"
	binInit     = "sealed-init"
	binAgent    = "sealed"
)

// ownPackages are built on every Up; Go's cache makes that quick.
func ownPackages() []string {
	return []string{
		"./vault-plugin/cmd/" + binPlugin, "./spire-attestor/cmd/" + binAttestor,
		"./cmd/" + binInit, "./cmd/" + binAgent,
	}
}

// findModule fills in the directory of the repository, walking up from the
// working directory.
func (c *Config) findModule() error {
	if c.Module != "" {
		return nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("finding the repository: %w", err)
	}
	for {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && modfile.ModulePath(b) == modulePath {
			c.Module = dir
			return nil
		}
		if dir == filepath.Dir(dir) {
			return fmt.Errorf("finding the repository: no go.mod of %s here or above: %w", modulePath, sealed.ErrNotFound)
		}
		dir = filepath.Dir(dir)
	}
}

// build builds a server into the cache. Two users at once build it once: the
// second waits for the lock and finds the file.
func (s Server) build(ctx context.Context, cfg Config, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("building %s: %w", s.Name, err)
	}
	cfg.progress("building "+s.Name, 0, 0)
	lock, err := lockFile(ctx, path+".lock", func() { cfg.progress("waiting for another build", 0, 0) })
	if err != nil {
		return fmt.Errorf("building %s: %w", s.Name, err)
	}
	defer lock.Close()
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	tmp := path + ".new"
	args := append([]string{"build", "-v", "-trimpath", "-ldflags", "-s -w"}, s.flags...)
	args = append(args, "-o", tmp, s.pkg)
	// Said either way: with no compiler at hand the go command would leave cgo out
	// without a word.
	env := []string{"CGO_ENABLED=0"}
	if s.cgo {
		env = []string{"CGO_ENABLED=1"}
	}
	var done int64
	err = goTool(ctx, filepath.Join(cfg.Module, "test", "stack", s.stack), env, args, func(line string) {
		done++
		cfg.progress("building "+s.Name+": "+line, done, 0)
	})
	if err != nil {
		return fmt.Errorf("building %s: %w", s.Name, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("building %s: %w", s.Name, err)
	}
	return nil
}

// installOwn puts our programs into the stack, building them first unless they
// are given.
func installOwn(ctx context.Context, cfg Config, l layout) error {
	if cfg.Programs != "" {
		return copyOwn(cfg.Programs, l)
	}
	return buildOwn(ctx, cfg, l)
}

// buildOwn builds our programs in the cache, where linking is skipped for those
// that are up to date, and copies them while it still holds the lock.
func buildOwn(ctx context.Context, cfg Config, l layout) error {
	if err := cfg.findModule(); err != nil {
		return err
	}
	key := sha256.Sum256([]byte(cfg.Module))
	out := filepath.Join(cfg.CacheDir, "own", hex.EncodeToString(key[:6]))
	if err := os.MkdirAll(out, 0o755); err != nil {
		return fmt.Errorf("building our programs: %w", err)
	}
	lock, err := lockFile(ctx, filepath.Join(out, ".lock"), nil)
	if err != nil {
		return fmt.Errorf("building our programs: %w", err)
	}
	defer lock.Close()
	args := append([]string{"build", "-v", "-trimpath", "-ldflags", "-s -w", "-o", out + string(filepath.Separator)}, ownPackages()...)
	var done int64
	err = goTool(ctx, cfg.Module, []string{"CGO_ENABLED=0"}, args, func(line string) {
		done++
		cfg.progress("building our programs: "+line, done, 0)
	})
	if err != nil {
		return fmt.Errorf("building our programs: %w", err)
	}
	return copyOwn(out, l)
}

// copyOwn installs our programs from a directory. Mode 0711 is for whatever
// runs inside a sandbox: a process that executes a file it may not read is not
// dumpable, not even towards its own uid (R01).
func copyOwn(from string, l layout) error {
	for _, b := range []struct {
		name, to string
		mode     os.FileMode
	}{
		{binInit, l.bin(binInit), 0o711}, {binAgent, l.bin(binAgent), 0o711},
		{binAttestor, l.private("plugins", binAttestor), 0o755},
		{binPlugin, l.private("plugins", binPlugin), 0o755},
	} {
		if err := install(filepath.Join(from, b.name), b.to, b.mode); err != nil {
			return err
		}
	}
	return nil
}

// goTool runs the go command in dir with the user's environment, for it needs
// its proxy and caches, and hands each line of stderr to line.
func goTool(ctx context.Context, dir string, env, args []string, line func(string)) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), append(env, "GOWORK=off", "PWD="+dir)...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("%w: Go is needed to build the development stack", err)
		}
		return err
	}
	var last []string
	for sc := bufio.NewScanner(stderr); sc.Scan(); {
		line(sc.Text())
		last = append(last, sc.Text())
		if len(last) > 10 {
			last = last[1:]
		}
	}
	_, _ = io.Copy(io.Discard, stderr) // what follows a line too long to show
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("go %s: %w: %s", args[0], err, strings.Join(last, " | "))
	}
	return nil
}

// install copies a program into place in one step: a running one keeps its
// inode, and nobody ever sees half a file. The copy belongs to the caller,
// root when it is root.
func install(from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("installing %s: %w", to, err)
	}
	defer in.Close()
	if same, err := sameContent(from, to); err == nil && same {
		return os.Chmod(to, mode)
	}
	out, err := os.CreateTemp(filepath.Dir(to), ".new-*")
	if err != nil {
		return fmt.Errorf("installing %s: %w", to, err)
	}
	defer os.Remove(out.Name()) // fails once it was renamed
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Chmod(mode)
	}
	if e := out.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(out.Name(), to)
	}
	if err != nil {
		return fmt.Errorf("installing %s: %w", to, err)
	}
	return nil
}

func sameContent(a, b string) (bool, error) {
	x, err := fileSHA256(a)
	if err != nil {
		return false, err
	}
	y, err := fileSHA256(b)
	return err == nil && x == y, err
}

func fileSHA256(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("hashing: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("hashing %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
