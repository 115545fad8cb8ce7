package registry_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/spire-attestor/registry"
)

const good = `{"v":1,"agent":"claude-code","backend":"local","pid":1234}`

func TestDecodeRequest(t *testing.T) {
	if r, err := registry.DecodeRequest([]byte(good)); err != nil || r.PID != 1234 || r.Agent != "claude-code" {
		t.Fatalf("DecodeRequest = %+v, %v", r, err)
	}
	for name, line := range map[string]string{
		"empty":          ``,
		"array":          `[1]`,
		"unknown field":  `{"v":1,"agent":"a","backend":"local","pid":1234,"uid":0}`,
		"trailing":       good + good,
		"version":        strings.Replace(good, `"v":1`, `"v":2`, 1),
		"agent path":     strings.Replace(good, "claude-code", "../x", 1),
		"agent selector": strings.Replace(good, "claude-code", "a:b", 1),
		"backend":        strings.Replace(good, "local", "docker", 1),
		"pid 0":          strings.Replace(good, "1234", "0", 1),
		"pid 1":          strings.Replace(good, "1234", "1", 1),
		"negative pid":   strings.Replace(good, "1234", "-5", 1),
		"huge pid":       strings.Replace(good, "1234", "4294968530", 1),
		"fraction":       strings.Replace(good, "1234", "1.5", 1),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := registry.DecodeRequest([]byte(line)); !errors.Is(err, sealed.ErrInvalid) {
				t.Errorf("DecodeRequest = %v, want ErrInvalid", err)
			}
		})
	}
}

func TestReadLine(t *testing.T) {
	long := strings.Repeat("x", registry.MaxLine)
	r := strings.NewReader("one\n" + long + "\n" + long + "x\n")
	for _, want := range []string{"one", long} {
		if got, err := registry.ReadLine(r); err != nil || string(got) != want {
			t.Fatalf("ReadLine = %d bytes, %v", len(got), err)
		}
	}
	if _, err := registry.ReadLine(r); !errors.Is(err, sealed.ErrInvalid) {
		t.Errorf("too long: %v, want ErrInvalid", err)
	}
	if _, err := registry.ReadLine(strings.NewReader("half")); !errors.Is(err, sealed.ErrInvalid) {
		t.Errorf("no newline: %v, want ErrInvalid", err)
	}
	if _, err := registry.ReadLine(strings.NewReader("")); !errors.Is(err, io.EOF) {
		t.Errorf("closed: %v, want EOF", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`{"claimed":true}`))
	f.Add([]byte(`{"v":1,"agent":"` + strings.Repeat("a", 100) + `"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		if r, err := registry.DecodeRequest(line); err == nil {
			if _, err := sealed.ParseName("agent", r.Agent); err != nil || r.PID < 2 || r.Backend != "local" {
				t.Errorf("accepted %+v", r)
			}
		}
		if n, err := registry.DecodeNotice(line); err == nil && !n.Claimed {
			t.Error("accepted a notice of nothing")
		}
		_, _ = registry.ReadLine(bytes.NewReader(line))
	})
}

// attestor answers the lines of one connection in turn.
func attestor(t *testing.T, answers ...string) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "r.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		for _, a := range answers {
			if _, err := registry.ReadLine(conn); err != nil {
				return
			}
			_, _ = io.WriteString(conn, a)
		}
	}()
	return socket
}

func TestRegister(t *testing.T) {
	d := registry.Descriptor{Agent: "claude-code", PID: 1234}
	ok := `{"ok":true,"isolation":"own_uid","init_sha256":"ab"}` + "\n"
	tests := map[string]struct {
		answers []string
		want    error
	}{
		"accepted":       {[]string{ok}, nil},
		"refused":        {[]string{`{"ok":false,"error":"uid_refused"}` + "\n"}, sealed.ErrDenied},
		"silent":         {nil, sealed.ErrUnavailable},
		"half an answer": {[]string{`{"ok":true`}, sealed.ErrUnavailable},
		"not an answer":  {[]string{"hello\n"}, sealed.ErrInvalid},
		"unknown field":  {[]string{`{"ok":true,"uid":0}` + "\n"}, sealed.ErrInvalid},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r, err := registry.Register(t.Context(), attestor(t, tt.answers...), d)
			if !errors.Is(err, tt.want) {
				t.Fatalf("Register = %v, want %v", err, tt.want)
			}
			if err == nil {
				_ = r.Close()
			}
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		if _, err := registry.Register(t.Context(), filepath.Join(t.TempDir(), "none"), d); !errors.Is(err, sealed.ErrUnavailable) {
			t.Errorf("Register = %v, want ErrUnavailable", err)
		}
	})
	t.Run("context ends", func(t *testing.T) {
		socket := filepath.Join(t.TempDir(), "r.sock")
		l, err := net.Listen("unix", socket) // connects, never answers
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := registry.Register(ctx, socket, d); !errors.Is(err, sealed.ErrUnavailable) {
			t.Errorf("Register = %v, want ErrUnavailable", err)
		}
	})
	t.Run("claimed", func(t *testing.T) {
		r, err := registry.Register(t.Context(), attestor(t, ok, `{"ok":true}`+"\n"), d)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if err := r.Claimed(); err != nil {
			t.Errorf("Claimed: %v", err)
		}
		if err := r.Claimed(); !errors.Is(err, sealed.ErrUnavailable) {
			t.Errorf("Claimed on a closed connection = %v, want ErrUnavailable", err)
		}
	})
	t.Run("refused and hung up before the line was sent", func(t *testing.T) {
		socket := filepath.Join(t.TempDir(), "r.sock")
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			if _, err := registry.ReadLine(conn); err != nil {
				return
			}
			_, _ = io.WriteString(conn, ok+`{"ok":false,"error":"launcher_refused"}`+"\n")
		}()
		r, err := registry.Register(t.Context(), socket, d)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		<-gone
		if err := r.Claimed(); !errors.Is(err, sealed.ErrDenied) {
			t.Errorf("Claimed = %v, want the refusal that was sent", err)
		}
	})
}
