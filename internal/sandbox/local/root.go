package local

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"sealed.dev/sealed/internal/sandbox"
	"sealed.dev/sealed/internal/sealed"
)

// smallFS bounds /run/sealed/run and /dev/shm, in bytes.
const smallFS = 64 << 20

// namespaces is the wall itself. Every option here is required: bwrap fails
// where it can't comply, but for the control group namespace, which old
// kernels lack and nothing depends on.
func namespaces() []string {
	return []string{
		"--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
		"--disable-userns", "--as-pid-1", "--cap-drop", "ALL", "--new-session", "--clearenv",
		"--hostname", sandbox.Hostname,
	}
}

// etcFiles of the host that the sandbox may read: roots of trust for TLS, the
// loader's cache, names of alternatives, time zone, file types.
var etcFiles = []string{
	"/etc/ssl/certs", "/etc/ca-certificates", "/etc/pki/tls/certs", "/etc/pki/ca-trust/extracted", "/etc/alternatives",
	"/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types",
}

// fileSystem is the allow-listed root.
func fileSystem(spec sandbox.Spec) []string {
	args := []string{"--ro-bind", "/usr", "/usr"}
	for _, dir := range []string{"/bin", "/sbin", "/lib", "/lib32", "/lib64"} {
		args = append(args, topLevel(dir)...)
	}
	for _, p := range etcFiles {
		args = append(args, "--ro-bind-try", p, p)
	}
	size := strconv.FormatInt(spec.Limits.Memory, 10)
	small := strconv.Itoa(smallFS)
	args = append(args,
		"--proc", "/proc",
		"--dev", "/dev", "--remount-ro", "/dev", "--perms", "1777", "--size", small, "--tmpfs", "/dev/shm",
		"--perms", "1777", "--size", size, "--tmpfs", sandbox.TempDir,
		"--perms", "0700", "--size", size, "--tmpfs", sandbox.HomeDir,
	)
	for _, p := range spec.ReadOnly {
		args = append(args, "--ro-bind", p, p)
	}
	args = append(args,
		"--ro-bind", spec.Init, sandbox.InitPath,
		"--perms", "0755", "--size", small, "--tmpfs", sandbox.RunDir,
	)
	if spec.Command != "" {
		args = append(args, "--ro-bind", spec.Command, sandbox.CommandPath)
	}
	return append(args, "--bind", spec.Workspace, sandbox.WorkspaceDir, "--remount-ro", "/", "--chdir", sandbox.WorkspaceDir)
}

// topLevel repeats what the host has: a link into /usr, a directory, nothing.
func topLevel(dir string) []string {
	if target, err := os.Readlink(dir); err == nil {
		return []string{"--symlink", target, dir}
	}
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return []string{"--ro-bind", dir, dir}
	}
	return nil
}

type generatedFile struct{ path, content string }

// generated files replace those of /etc that would tell about the host.
func generated(spec sandbox.Spec) []generatedFile {
	return []generatedFile{
		{"/etc/passwd", fmt.Sprintf("agent:x:%d:%d:agent:%s:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n", spec.UID, spec.GID, sandbox.HomeDir)},
		{"/etc/group", fmt.Sprintf("agent:x:%d:\nnogroup:x:65534:\n", spec.GID)},
		{"/etc/hosts", "127.0.0.1 localhost " + sandbox.Hostname + "\n::1 localhost\n"},
		{"/etc/resolv.conf", "# there is no resolver in the sandbox\n"},
		{"/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"},
	}
}

// dataPipe returns the read end of a pipe that holds content. It must fit into
// the pipe (a page at least).
func dataPipe(content string) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if _, err := w.WriteString(content); err != nil {
		_ = r.Close()
		return nil, err
	}
	return r, nil
}

// probe finds out why a start failed: it makes the same namespaces around
// nothing and reads what bubblewrap says. It returns nil when that works.
func probe(ctx context.Context, bwrap string, spec sandbox.Spec) error {
	args := append(namespaces(), "--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64",
		"--proc", "/proc", "--dev", "/dev", "--", "/usr/bin/true")
	cmd := exec.CommandContext(ctx, bwrap, args...)
	cmd.Env = []string{}
	cmd.Dir = "/"
	if spec.Isolation == sealed.IsolationOwnUID {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(spec.UID), Gid: uint32(spec.GID), Groups: []uint32{}}}
	}
	var out bytes.Buffer
	cmd.Stderr = &out
	if cmd.Run() == nil {
		return nil
	}
	for _, sign := range []string{"namespace", "uid map", "gid map", "Operation not permitted"} {
		if bytes.Contains(out.Bytes(), []byte(sign)) {
			return fmt.Errorf("%w: %s", sandbox.ErrUserNS, firstLine(out.Bytes()))
		}
	}
	return fmt.Errorf("bubblewrap failed: %s", firstLine(out.Bytes()))
}

func firstLine(b []byte) []byte {
	line, _, _ := bytes.Cut(bytes.TrimSpace(b), []byte("\n"))
	return line[:min(len(line), 200)]
}
