package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// hostLimit bounds each look at this host.
const hostLimit = 3 * time.Second

// writableByOthers says who but root (or, without root, the caller) could
// change a file: itself, or a directory on the way to it. "" means nobody.
func writableByOthers(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		return err.Error()
	}
	for p := abs; ; p = filepath.Dir(p) {
		st, err := os.Lstat(p)
		if err != nil {
			return err.Error()
		}
		sys, _ := st.Sys().(*syscall.Stat_t)
		sticky := st.IsDir() && st.Mode()&os.ModeSticky != 0
		switch {
		case st.Mode()&os.ModeSymlink != 0:
			return p + " is a symbolic link"
		case sys == nil || sys.Uid != 0 && int(sys.Uid) != os.Geteuid():
			return p + " does not belong to root"
		case st.Mode().Perm()&0o022 != 0 && !sticky:
			return p + " can be written by others"
		}
		if p == filepath.Dir(p) {
			return ""
		}
	}
}

func (a *app) checkIdentity(ctx context.Context, t *sealed.TrustFile) []check {
	if t == nil {
		return []check{bad(checkSkip, "identity", "mend the trust file first", "the trust file names the sockets")}
	}
	return []check{
		checkSocket(ctx, "workload API", t.SPIFFESocket, "start the SPIRE agent, or: sealedctl dev up"),
		checkSocket(ctx, "attestor", t.AttestSocket, "start the SPIRE agent with Sealed's attestor, or: sealedctl dev up"),
	}
}

func checkSocket(ctx context.Context, name, path, next string) check {
	if path == "" {
		return bad(checkFail, name, "name the socket in the trust file", "no socket is configured")
	}
	ctx, cancel := context.WithTimeout(ctx, hostLimit)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return bad(checkFail, name, next, "nobody answers on %s", path)
	}
	_ = conn.Close()
	return ok(name, "%s", path)
}

func (a *app) checkSandbox(ctx context.Context) []check {
	return append(checkBubblewrap(ctx), a.checkInit(), a.checkCommand(), checkIsolation())
}

// bwrapPaths are where the local driver looks.
var bwrapPaths = [...]string{"/usr/bin/bwrap", "/bin/bwrap", "/usr/local/bin/bwrap"}

// checkBubblewrap starts the smallest sandbox: version and permission in one.
func checkBubblewrap(ctx context.Context) []check {
	ctx, cancel := context.WithTimeout(ctx, hostLimit)
	defer cancel()
	for _, path := range bwrapPaths {
		if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
			continue
		}
		out, err := exec.CommandContext(ctx, path, "--version").Output()
		if err != nil {
			return []check{bad(checkFail, "bubblewrap", "install bubblewrap anew", "%s does not run", path)}
		}
		found := ok("bubblewrap", "%s, %s", path, strings.TrimSpace(string(out)))
		probe := exec.CommandContext(ctx, path, "--unshare-all", "--unshare-user", "--disable-userns", "--ro-bind", "/", "/", "--cap-drop", "ALL", "/bin/true")
		if said, err := probe.CombinedOutput(); err != nil {
			first, _, _ := strings.Cut(strings.TrimSpace(string(said)), "\n")
			return []check{found, bad(checkFail, "namespaces", "allow user namespaces: sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=15000, and AppArmor", "no sandbox starts: %s", first)}
		}
		return []check{found, ok("namespaces", "a sandbox starts")}
	}
	return []check{bad(checkFail, "bubblewrap", "apt install bubblewrap", "there is no bwrap in the directories of the system")}
}

// checkInit looks at sealed-init: a process that runs a file which it may not
// read can't be read by others either.
func (a *app) checkInit() check {
	const name = "sealed-init"
	path := filepath.Join(a.libexec, "sealed-init")
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return bad(checkFail, name, "set SEALED_LIBEXEC, or: eval \"$(sealedctl dev env)\"", "%s is not there", path)
	}
	if err != nil {
		return bad(checkFail, name, "", "%v", err)
	}
	sys, _ := st.Sys().(*syscall.Stat_t)
	switch {
	case !st.Mode().IsRegular():
		return bad(checkFail, name, "install it again", "%s is not a regular file", path)
	case st.Mode().Perm() != 0o711 || st.Mode()&(os.ModeSetuid|os.ModeSetgid) != 0:
		return bad(checkFail, name, "chmod 0711 "+path, "%s has mode %04o, wants 0711", path, st.Mode().Perm())
	case sys == nil || sys.Uid != 0:
		return bad(checkWarn, name, "have root install it", "%s does not belong to root: runs are graded same_uid at best", path)
	}
	return ok(name, "%s, of root, mode 0711", path)
}

// checkCommand looks at the sealed command, which agents run.
func (a *app) checkCommand() check {
	const name = "sealed"
	path := filepath.Join(a.libexec, name)
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return bad(checkFail, name, "set SEALED_LIBEXEC, or: eval \"$(sealedctl dev env)\"", "%s is not there", path)
	case !st.Mode().IsRegular() || st.Mode().Perm()&0o001 == 0:
		return bad(checkFail, name, "chmod 0711 "+path, "%s can't be executed by agents", path)
	}
	return ok(name, "%s", path)
}

func checkIsolation() check {
	if os.Geteuid() != 0 {
		return bad(checkWarn, "isolation", "start runs by a service that runs as root", "sandboxes share your uid: same_uid; the default policy allows that for low risk only")
	}
	return ok("isolation", "every sandbox gets a uid of its own: own_uid")
}

// describe makes a short text of what a check counts.
func describe(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
