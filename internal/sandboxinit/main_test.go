package sandboxinit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"sealed.dev/sealed/test/harness/require"
)

// children are what the test binary does when it is executed again: what
// changes a whole process (a filter, a limit, being process 1) must not change
// the one that runs the tests. Each prints one JSON document.
var children = map[string]func(args []string) any{
	"confess":          childConfess,
	"harden":           childHarden,
	"refuse":           childRefuse,
	"signals":          childSignals,
	"seccomp":          childSeccomp,
	"seccomp-diverged": childDiverged,
	"agent":            childAgent,
	"killall":          childKillAll,
	"footprint":        childFootprint,
}

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "child" {
		out := children[os.Args[2]](os.Args[3:])
		if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runChild executes the test binary as a child and decodes what it prints.
func runChild(t *testing.T, out any, change func(*exec.Cmd), args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, self, append([]string{"child"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = []string{"GORACE=atexit_sleep_ms=0"} // a race still ends it with a status
	cmd.WaitDelay = 5 * time.Second
	if change != nil {
		change(cmd)
	}
	if err := cmd.Run(); err != nil {
		t.Fatalf("child %v: %v\n%s%s", args, err, stdout.Bytes(), stderr.Bytes())
	}
	if err := json.Unmarshal(stdout.Bytes(), out); err != nil {
		t.Fatalf("child %v printed %q: %v", args, stdout.Bytes(), err)
	}
}

// processOne makes a child process 1 of a pid namespace of its own, as in a
// sandbox: kill(-1) reaches nothing outside, and all of it ends with the child.
func processOne(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
}

// needNamespaces skips where the kernel gives no user namespace, and fails if
// the environment requires them.
func needNamespaces(t *testing.T) {
	t.Helper()
	require.UserNamespaces(t)
}

// fail ends a child with a message that runChild shows.
func fail(format string, args ...any) {
	_, _ = fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(1)
}
