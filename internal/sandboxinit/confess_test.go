package sandboxinit

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/relay"
	"sealed.dev/sealed/internal/sealed"
)

// childConfess is init from its first instruction, with more in its environment
// than it allows.
func childConfess([]string) any {
	var stderr bytes.Buffer
	status := Main([]string{"PWD=/", "GODEBUG=" + environCanary, "LD_PRELOAD=" + environCanary}, os.Stdout, &stderr)
	return map[string]any{"status": status, "stderr": stderr.String()}
}

// An environment that is refused is told to the supervisor, who can log it: the
// names, and nothing of what they hold.
func TestRefusedEnvironmentIsTold(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, far := os.NewFile(uintptr(pair[0]), "near"), os.NewFile(uintptr(pair[1]), "far")
	conn, err := net.FileConn(near)
	if err != nil {
		t.Fatal(err)
	}
	_ = near.Close()
	told := make(chan sealed.RelayControl, 1)
	host := &relay.Host{Policy: relay.Policy{Network: sealed.NetworkNone}, Control: func(_ context.Context, c *relay.Control) {
		for {
			msg, err := c.Receive()
			if err != nil {
				return
			}
			told <- msg
		}
	}}
	go func() { _ = host.Serve(t.Context(), conn) }()
	var out struct {
		Status int
		Stderr string
	}
	runChild(t, &out, func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{far} }, "confess") // as descriptor RelayFD
	_ = far.Close()
	select {
	case msg := <-told:
		for _, text := range []string{msg.Message, out.Stderr} {
			if !strings.Contains(text, "refusing environment GODEBUG, LD_PRELOAD") || strings.Contains(text, environCanary) {
				t.Errorf("said %q", text)
			}
		}
		if msg.Type != relay.ControlFailed || msg.Exit != sealed.ExitSealed || out.Status != sealed.ExitSealed {
			t.Errorf("told %+v, status %d", msg, out.Status)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing was told")
	}
}
