package main

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"sealed.dev/sealed/test/harness/require"
)

// TestPromptDoesNotEcho types a value at the prompt, as a person would once it
// is there, and looks at what the terminal shows. The control reads the same
// line without the prompt, and shows it.
func TestPromptDoesNotEcho(t *testing.T) {
	const typed = "typed-value-0123456789"
	for _, prompt := range []bool{true, false} {
		master, slave, err := pty.Open()
		if err != nil {
			require.Missing(t, "pty", err.Error())
		}
		var stderr bytes.Buffer
		a := newApp(slave, io.Discard, &stderr)
		got := make(chan string, 1)
		go func() {
			if prompt {
				b, _ := a.value("value", "")
				got <- string(b)
				return
			}
			b := make([]byte, 64)
			n, _ := slave.Read(b)
			got <- strings.TrimSpace(string(b[:n]))
		}()
		if prompt {
			awaitNoEcho(t, slave)
		}
		if _, err := master.WriteString(typed + "\n"); err != nil {
			t.Fatal(err)
		}
		if v := <-got; v != typed {
			t.Errorf("prompt %t: read %q", prompt, v)
		}
		_ = slave.Close()
		screen, _ := io.ReadAll(master) // ends with EIO once the other side is closed
		_ = master.Close()
		if shown := strings.Contains(string(screen)+stderr.String(), typed); shown == prompt {
			t.Errorf("prompt %t: shown on the terminal: %t", prompt, shown)
		}
	}
}

// awaitNoEcho waits until the terminal has been told not to echo.
func awaitNoEcho(t *testing.T, tty *os.File) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		mode, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		if mode.Lflag&unix.ECHO == 0 {
			return
		}
	}
	t.Fatal("the terminal still echoes")
}
