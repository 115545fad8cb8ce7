package workspace

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/test/harness/require"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, root, name, content string) {
	t.Helper()
	p := filepath.Join(root, name)
	must(t, os.MkdirAll(filepath.Dir(p), 0o755))
	must(t, os.WriteFile(p, []byte(content), 0o644))
}

func read(t testing.TB, root, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		return "absent"
	}
	return string(b)
}

// scene is a workspace that was copied in: original, copy, quarantine.
type scene struct {
	original, copy, quarantine string
	baseline                   *Baseline
}

func newScene(t *testing.T, files map[string]string) *scene {
	t.Helper()
	dir := t.TempDir()
	s := &scene{original: dir + "/original", copy: dir + "/copy", quarantine: dir + "/quarantine"}
	must(t, errors.Join(os.Mkdir(s.original, 0o755), os.Mkdir(s.copy, 0o700)))
	for name, content := range files {
		write(t, s.original, name, content)
	}
	s.copyIn(t)
	return s
}

func (s *scene) copyIn(t *testing.T) {
	t.Helper()
	var err error
	s.baseline, err = CopyIn(s.original, s.copy, os.Getuid())
	must(t, err)
}

func (s *scene) back(t *testing.T, flagged ...string) Report {
	t.Helper()
	r, err := CopyBack(s.copy, s.original, s.baseline, flagged, s.quarantine)
	must(t, err)
	return r
}

func TestDigest(t *testing.T) {
	dir := t.TempDir()
	digest := func() string {
		t.Helper()
		d, err := Digest(dir)
		must(t, err)
		must(t, d.Validate("digest"))
		return string(d)
	}
	seen := map[string]string{}
	step := func(name string, change func() error) {
		t.Helper()
		must(t, change())
		d := digest()
		if before, dup := seen[d]; dup {
			t.Errorf("%s and %s have the same digest", name, before)
		}
		seen[d] = name
		if again := digest(); again != d {
			t.Errorf("%s: not stable", name)
		}
	}
	p := func(name string) string { return filepath.Join(dir, name) }
	step("empty", func() error { return nil })
	step("file", func() error { return os.WriteFile(p("a"), []byte("1"), 0o644) })
	step("content", func() error { return os.WriteFile(p("a"), []byte("2"), 0o644) })
	step("exec bit", func() error { return os.Chmod(p("a"), 0o755) })
	step("directory", func() error { return os.Mkdir(p("d"), 0o755) })
	step("name with newline", func() error { return os.WriteFile(p("f 000 1\nf"), nil, 0o644) })
	step("link", func() error { return os.Symlink("a", p("l")) })
	step("target", func() error { return errors.Join(os.Remove(p("l")), os.Symlink("d", p("l"))) })
	step("rename", func() error { return os.Rename(p("a"), p("b")) })
	same := digest()
	must(t, os.Chmod(p("b"), 0o711)) // read and write bits depend on the umask
	must(t, syscall.Mkfifo(p("fifo"), 0o644))
	if digest() != same {
		t.Error("what is not copied counts")
	}
}

func TestDigestRefusesDevices(t *testing.T) {
	require.Root(t, "to make a device")
	dir := t.TempDir()
	must(t, syscall.Mknod(dir+"/null", syscall.S_IFCHR|0o666, 1<<8|3))
	if _, err := Digest(dir); !errors.Is(err, ErrDevice) {
		t.Errorf("got %v", err)
	}
}

func TestCopyIn(t *testing.T) {
	dir := t.TempDir()
	src, dst := dir+"/src", dir+"/dst"
	must(t, errors.Join(os.Mkdir(src, 0o755), os.Mkdir(dst, 0o700)))
	write(t, src, "bin/tool", "#!/bin/sh\n")
	must(t, os.Chmod(src+"/bin/tool", 0o755|fs.ModeSetuid))
	must(t, os.Symlink("/etc/passwd", src+"/outward"))
	must(t, syscall.Mkfifo(src+"/fifo", 0o644))
	must(t, os.Link(src+"/bin/tool", src+"/hard"))
	uid := os.Getuid()
	if uid == 0 {
		uid = 700123
	}
	b, err := CopyIn(src, dst, uid)
	must(t, err)
	want, err := Digest(src)
	must(t, err)
	if b.Digest != want {
		t.Error("the baseline's digest is not the source's")
	}
	if got, err := Digest(dst); err != nil || got != want {
		t.Errorf("the copy's digest differs (%v)", err)
	}
	st, err := os.Lstat(dst + "/bin/tool")
	must(t, err)
	if st.Mode() != 0o755 || int(st.Sys().(*syscall.Stat_t).Uid) != uid || st.Sys().(*syscall.Stat_t).Nlink != 1 {
		t.Errorf("tool is %v of %+v", st.Mode(), st.Sys())
	}
	if _, err := os.Lstat(dst + "/fifo"); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the FIFO was copied")
	}
	if target, _ := os.Readlink(dst + "/outward"); target != "/etc/passwd" {
		t.Error("the link is not as it was")
	}
}

func TestLimits(t *testing.T) {
	t.Run("sparse bomb", func(t *testing.T) {
		s := newScene(t, map[string]string{"keep": "1"})
		must(t, os.WriteFile(s.copy+"/bomb", nil, 0o644))
		must(t, os.Truncate(s.copy+"/bomb", MaxBytes+1))
		write(t, s.copy, "keep", "2")
		if _, err := CopyBack(s.copy, s.original, s.baseline, nil, s.quarantine); !errors.Is(err, ErrTooLarge) {
			t.Errorf("got %v", err)
		}
		if read(t, s.original, "keep") != "1" {
			t.Error("part of it came back")
		}
	})
	t.Run("deep", func(t *testing.T) {
		dir := t.TempDir()
		must(t, os.MkdirAll(dir+strings.Repeat("/d", MaxDepth+2), 0o755))
		if _, err := Digest(dir); !errors.Is(err, ErrTooLarge) {
			t.Errorf("got %v", err)
		}
	})
}

func TestCopyBack(t *testing.T) {
	s := newScene(t, map[string]string{
		"same": "s", "change": "1", "delete": "d", "dir/a": "a", "gone/x": "x", "type": "file", "script": "sh",
		"mine": "1", "mine-deleted": "1", "theirs-deleted": "1",
	})
	must(t, os.Chmod(s.original+"/change", 0o640))
	// The agent:
	write(t, s.copy, "change", "2")
	write(t, s.copy, "new/deep/file", "n")
	must(t, errors.Join(os.Remove(s.copy+"/delete"), os.RemoveAll(s.copy+"/gone"), os.Remove(s.copy+"/type"), os.Chmod(s.copy+"/script", 0o755)))
	write(t, s.copy, "type/inner", "i")
	must(t, os.Symlink("../dir/a", s.copy+"/new/link"))
	write(t, s.copy, "mine", "agent's")
	write(t, s.copy, "mine-deleted", "agent's")
	must(t, os.Remove(s.copy+"/theirs-deleted"))
	// The operator, meanwhile:
	write(t, s.original, "mine", "operator's")
	must(t, os.Remove(s.original+"/mine-deleted"))
	write(t, s.original, "theirs-deleted", "operator's")
	write(t, s.original, "operator-new", "o")

	want := Report{
		Created: []string{"new", "new/deep", "new/deep/file", "new/link", "type/inner"},
		Changed: []string{"change", "script", "type"},
		Deleted: []string{"delete", "gone", "gone/x"},
		Quarantined: []Quarantined{
			{"mine", ReasonConflict}, {"theirs-deleted", ReasonConflict},
		},
	}
	got := s.back(t)
	// A file that the operator deleted and the agent changed comes back.
	want.Changed = []string{"change", "mine-deleted", "script", "type"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for name, content := range map[string]string{
		"same": "s", "change": "2", "delete": "absent", "new/deep/file": "n", "type/inner": "i", "new/link": "a",
		"mine": "operator's", "theirs-deleted": "operator's", "operator-new": "o", "gone/x": "absent",
	} {
		if got := read(t, s.original, name); got != content {
			t.Errorf("%s is %q, want %q", name, got, content)
		}
	}
	if read(t, s.quarantine, "mine") != "agent's" {
		t.Error("the agent's version is lost")
	}
	if st, _ := os.Stat(s.original + "/change"); st.Mode() != 0o640 {
		t.Errorf("mode of a changed file is %v", st.Mode())
	}
	if st, _ := os.Stat(s.original + "/script"); st.Mode() != 0o755 {
		t.Errorf("mode of a script is %v", st.Mode())
	}
	if left, _ := filepath.Glob(s.original + "/.sealed-*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// plants are what an agent leaves for the host to trip over: B22, B23, R17.
var plants = map[string]struct {
	plant  func(dir string) error
	path   string
	reason string
}{
	"setuid":            {func(d string) error { return suid(d + "/su") }, "su", ReasonSetuid},
	"fifo":              {func(d string) error { return syscall.Mkfifo(d+"/fifo", 0o644) }, "fifo", ReasonSpecial},
	"absolute link":     {func(d string) error { return os.Symlink("/etc/passwd", d+"/l") }, "l", ReasonLink},
	"outward link":      {func(d string) error { return os.Symlink("../../x", d+"/l") }, "l", ReasonLink},
	"link out of a dir": {func(d string) error { return os.Symlink("sub/../../x", d+"/l") }, "l", ReasonLink},
	"link via a link": {func(d string) error {
		return errors.Join(os.Symlink(".", d+"/p"), os.Symlink("p/x", d+"/q"))
	}, "q", ReasonLink},
	"hook":           {plant(".git/hooks/post-checkout"), ".git/hooks/post-checkout", ReasonProtected},
	"git config":     {plant(".git/config"), ".git/config", ReasonProtected},
	"worktree":       {plant(".git/config.worktree"), ".git/config.worktree", ReasonProtected},
	"attributes":     {plant(".git/info/attributes"), ".git/info/attributes", ReasonProtected},
	"submodule hook": {plant(".git/modules/x/hooks/pre-push"), ".git/modules/x/hooks/pre-push", ReasonProtected},
	"nested git":     {plant("sub/dir/.git/config"), "sub/dir/.git/config", ReasonProtected},
	"git file":       {plant("sub/.git"), "sub/.git", ReasonProtected},
	"linked claude": {func(d string) error {
		return errors.Join(plant("x/settings.json")(d), os.Symlink("x", d+"/.claude"))
	}, ".claude", ReasonProtected},
	"linked info": {func(d string) error {
		return errors.Join(plant(".git/x/attributes")(d), os.Symlink("x", d+"/.git/info"))
	}, ".git/info", ReasonProtected},
	"upper case":  {plant(".GIT/hooks/pre-commit"), ".GIT/hooks/pre-commit", ReasonProtected},
	"git modules": {plant(".gitmodules"), ".gitmodules", ReasonProtected},
	"tasks":       {plant(".vscode/tasks.json"), ".vscode/tasks.json", ReasonProtected},
	"idea":        {plant(".idea/x.xml"), ".idea/x.xml", ReasonProtected},
	"envrc":       {plant(".envrc"), ".envrc", ReasonProtected},
	"claude":      {plant(".claude/settings.local.json"), ".claude/settings.local.json", ReasonProtected},
	"claude hook": {plant(".claude/hooks/x.sh"), ".claude/hooks/x.sh", ReasonProtected},
	"mcp":         {plant(".mcp.json"), ".mcp.json", ReasonProtected},
	"codex":       {plant(".codex/config.toml"), ".codex/config.toml", ReasonProtected},
	"gemini":      {plant(".gemini/settings.json"), ".gemini/settings.json", ReasonProtected},
	"husky":       {plant(".husky/pre-commit"), ".husky/pre-commit", ReasonProtected},
	"pre-commit":  {plant(".pre-commit-config.yaml"), ".pre-commit-config.yaml", ReasonProtected},
	"bare repository": {func(d string) error {
		return errors.Join(plant("lib/HEAD")(d), plant("lib/objects/x")(d), plant("lib/refs/x")(d), plant("lib/config")(d))
	}, "lib/config", ReasonProtected},
}

func plant(name string) func(string) error {
	return func(d string) error {
		p := filepath.Join(d, name)
		return errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte("planted"), 0o755))
	}
}

func suid(p string) error {
	return errors.Join(os.WriteFile(p, []byte("planted"), 0o755), os.Chmod(p, 0o755|fs.ModeSetuid))
}

func TestPlants(t *testing.T) {
	for name, tc := range plants {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, map[string]string{"sub/keep": "k"})
			must(t, tc.plant(s.copy))
			r := s.back(t)
			found := false
			for _, q := range r.Quarantined {
				found = found || q == Quarantined{tc.path, tc.reason}
			}
			if !found {
				t.Errorf("not quarantined: %+v", r)
			}
			if _, err := os.Lstat(filepath.Join(s.original, tc.path)); !errors.Is(err, fs.ErrNotExist) {
				t.Error("it is on the host")
			}
			if st, err := os.Lstat(filepath.Join(s.quarantine, tc.path)); err == nil && st.Mode() != 0o600 {
				t.Errorf("in quarantine it is %v", st.Mode())
			}
		})
	}
	t.Run("control: plain copying brings them all", func(t *testing.T) {
		for name, tc := range plants {
			dir := t.TempDir()
			must(t, os.Mkdir(dir+"/sub", 0o755))
			must(t, tc.plant(dir))
			if _, err := os.Lstat(filepath.Join(dir, tc.path)); err != nil {
				t.Errorf("%s plants nothing: %v", name, err)
			}
		}
	})
}

// TestProtectedExisting: what was there at the start is protected as well, be
// it changed, deleted or replaced by a link.
func TestProtectedExisting(t *testing.T) {
	s := newScene(t, map[string]string{".git/config": "good", ".git/hooks/pre-push": "good", ".envrc": "good", ".git/refs/heads/config": "1"})
	write(t, s.copy, ".git/config", "bad")
	must(t, errors.Join(os.Remove(s.copy+"/.git/hooks/pre-push"), os.Remove(s.copy+"/.envrc"), os.Symlink("x", s.copy+"/.envrc")))
	write(t, s.copy, ".git/refs/heads/config", "2")
	r := s.back(t)
	for _, p := range []string{".git/config", ".git/hooks/pre-push", ".envrc"} {
		if got := read(t, s.original, p); got != "good" {
			t.Errorf("%s is %q", p, got)
		}
	}
	if diff := cmp.Diff([]string{".git/refs/heads/config"}, r.Changed); diff != "" {
		t.Error(diff)
	}
}

// TestLinkOnTheHost: a directory of the original that is a link is not
// written through.
func TestLinkOnTheHost(t *testing.T) {
	s := newScene(t, map[string]string{"d/f": "1"})
	outside := t.TempDir()
	write(t, outside, "f", "outside")
	must(t, errors.Join(os.RemoveAll(s.original+"/d"), os.Symlink(outside, s.original+"/d")))
	write(t, s.copy, "d/f", "2")
	write(t, s.copy, "d/new", "2")
	r := s.back(t)
	if read(t, outside, "f") != "outside" || read(t, outside, "new") != "absent" {
		t.Error("written through a link")
	}
	if len(r.Quarantined) != 2 {
		t.Errorf("%+v", r)
	}
}

func TestCredentials(t *testing.T) {
	const canary = "canary-0123456789"
	look := func(r io.Reader) (bool, error) {
		b, err := io.ReadAll(r)
		return bytes.Contains(b, []byte(canary)), err
	}
	s := newScene(t, map[string]string{"clean": "1", "dirty": "1"})
	write(t, s.copy, "clean", "2")
	write(t, s.copy, "dirty", "x"+canary)
	write(t, s.copy, canary+"/inner", "1")
	write(t, s.copy, "can/"+canary, "1")
	must(t, os.Symlink(canary, s.copy+"/link"))
	flagged, err := Scan(s.copy, look)
	must(t, err)
	if strings.Contains(strings.Join(flagged, " "), canary) || len(flagged) != 4 {
		t.Errorf("flagged %q", flagged)
	}
	r := s.back(t, flagged...)
	for _, q := range r.Quarantined {
		if q.Reason != ReasonCredential {
			t.Errorf("%+v", q)
		}
	}
	if hits := grep(t, filepath.Dir(s.original), canary, s.copy); len(hits) > 0 {
		t.Errorf("the canary is on the host: %v", hits)
	}
	if read(t, s.original, "clean") != "2" {
		t.Error("the clean file did not come back")
	}
	t.Run("control: without a scan", func(t *testing.T) {
		_ = s.back(t)
		if hits := grep(t, s.original, canary, "-"); len(hits) == 0 {
			t.Error("the canary should be on the host")
		}
	})
	t.Run("removed by init", func(t *testing.T) {
		s := newScene(t, map[string]string{"removed": "1", "deleted": "1"})
		must(t, errors.Join(os.Remove(s.copy+"/removed"), os.Remove(s.copy+"/deleted")))
		r := s.back(t, "removed")
		if read(t, s.original, "removed") != "1" || read(t, s.original, "deleted") != "absent" || len(r.Quarantined) != 1 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("nothing deleted when all is flagged", func(t *testing.T) {
		s := newScene(t, map[string]string{"deleted": "1"})
		must(t, os.Remove(s.copy+"/deleted"))
		if s.back(t, "."); read(t, s.original, "deleted") != "1" {
			t.Error("deleted")
		}
	})
	t.Run("renamed by init", func(t *testing.T) {
		s := newScene(t, map[string]string{"d/" + canary: "1", "gone": "1"})
		must(t, os.Remove(s.copy+"/gone"))
		flagged, err := Scan(s.copy, look)
		must(t, err)
		if s.back(t, flagged...); read(t, s.original, "d/"+canary) != "1" || read(t, s.original, "gone") != "absent" {
			t.Errorf("flagged %q", flagged)
		}
	})
	t.Run("everything", func(t *testing.T) {
		s := newScene(t, nil)
		write(t, s.copy, "new", "1")
		if r := s.back(t, "."); len(r.Created) > 0 {
			t.Errorf("%+v", r)
		}
	})
}

// grep finds names, targets and contents below root, but not below except.
func grep(t *testing.T, root, text, except string) []string {
	t.Helper()
	var hits []string
	must(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if p == except {
			return filepath.SkipDir
		}
		target, _ := os.Readlink(p)
		content, _ := os.ReadFile(p)
		if strings.Contains(filepath.Base(p)+"\n"+target+"\n"+string(content), text) {
			hits = append(hits, p)
		}
		return nil
	}))
	return hits
}

func TestInsideLink(t *testing.T) {
	for _, tc := range []struct {
		path, target string
		want         bool
	}{
		{"l", "a", true}, {"l", "./a/b", true}, {"d/l", "../a", true}, {"d/e/l", "../../a", true},
		{"l", "..", false}, {"d/l", "../../a", false}, {"l", "/a", false}, {"l", "", false},
		{"d/l", "a/../../..", false}, {"d/l", "a/..", false}, {"l", "a//b/", true},
	} {
		if got := insideLink(tc.path, tc.target); got != tc.want {
			t.Errorf("insideLink(%q, %q) = %v", tc.path, tc.target, got)
		}
	}
}

func FuzzProtected(f *testing.F) {
	for _, tc := range plants {
		f.Add(tc.path)
	}
	f.Fuzz(func(t *testing.T, p string) {
		// Depth and letter case never take the protection away.
		if Protected(p) && !strings.HasPrefix(p, "/") && !strings.Contains(p, "..") {
			if !Protected("x/"+p) || !Protected(strings.ToUpper(p)) && strings.EqualFold(strings.ToUpper(p), p) {
				t.Errorf("%q", p)
			}
		}
	})
}
