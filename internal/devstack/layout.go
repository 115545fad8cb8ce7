package devstack

import (
	"fmt"
	"os"
	"path/filepath"

	"sealed.dev/sealed/internal/sealed"
)

// layout names every file of a stack below its directory. Everything that a
// run's uid may traverse or read lies outside private.
type layout struct{ dir string }

func (l layout) at(parts ...string) string {
	return filepath.Join(append([]string{l.dir}, parts...)...)
}

func (l layout) private(parts ...string) string {
	return l.at(append([]string{"private"}, parts...)...)
}

func (l layout) bin(name string) string    { return l.at("bin", name) }
func (l layout) state() string             { return l.at("state.json") }
func (l layout) trust() string             { return l.at("trust.json") }
func (l layout) ca() string                { return l.at("ca.pem") }
func (l layout) workloadSocket() string    { return l.at("run", "spiffe", "agent.sock") }
func (l layout) registrySocket() string    { return l.at("run", "registry", "registry.sock") }
func (l layout) log(process string) string { return l.private("log", process+".log") }
func (l layout) temporary() string         { return l.private("tmp") }
func (l layout) vaultAudit() string        { return l.private("log", "vault-audit.json") }

// maxSocketPath is the room in sockaddr_un on Linux, without the final NUL.
const maxSocketPath = 107

// make makes the directories with their modes, whatever the umask. dir itself
// is 0711: run uids pass through to bin/ and run/, and can't list it.
func (l layout) make() error {
	if !filepath.IsAbs(l.dir) {
		return fmt.Errorf("making state directory: %q is not absolute: %w", l.dir, sealed.ErrInvalid)
	}
	pluginSocket := filepath.Join(l.temporary(), "plugin4294967295") // as long as they get
	if max(len(pluginSocket), len(l.private("spire", "server.sock")), len(l.registrySocket())) > maxSocketPath {
		return fmt.Errorf("making state directory: the path of %s is too long for a Unix socket: %w", l.dir, sealed.ErrInvalid)
	}
	if err := os.MkdirAll(filepath.Dir(l.dir), 0o755); err != nil {
		return fmt.Errorf("making state directory: %w", err)
	}
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{
		{l.dir, 0o711}, {l.at("bin"), 0o711}, {l.at("run"), 0o711},
		{l.at("run", "spiffe"), 0o755}, {l.at("run", "registry"), 0o755},
		{l.private(), 0o700}, {l.temporary(), 0o700}, {l.private("log"), 0o700}, {l.private("raft"), 0o700},
		{l.private("plugins"), 0o700}, {l.private("spire"), 0o700}, {l.private("authority"), 0o700},
	} {
		if err := os.Mkdir(d.path, d.mode); err != nil && !os.IsExist(err) {
			return fmt.Errorf("making state directory: %w", err)
		}
		if err := ownDirectory(d.path); err != nil {
			return err
		}
		if err := os.Chmod(d.path, d.mode); err != nil {
			return fmt.Errorf("making state directory: %w", err)
		}
	}
	return nil
}

// writeFile replaces path in one step, with this mode whatever the umask.
func writeFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer os.Remove(f.Name()) // fails once it was renamed
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
