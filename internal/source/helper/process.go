package helper

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/source"
)

// A process is a helper that runs.
type process struct {
	client *plugin.Client
	conn   *grpc.ClientConn
	dir    string // of its socket
	once   sync.Once
}

// startProcess starts the program if its SHA-256 is sum. What is hashed is
// what runs: both go through one open descriptor, so that replacing the file in
// between changes nothing. Every error matches sealed.ErrUnavailable.
func startProcess(program string, sum []byte) (*process, error) {
	file, err := os.Open(program)
	if err != nil {
		return nil, fmt.Errorf("starting the helper: %s can't be opened: %w", filepath.Base(program), sealed.ErrUnavailable)
	}
	defer file.Close()
	dir, err := os.MkdirTemp("", "sealed-source-")
	if err != nil {
		return nil, fmt.Errorf("starting the helper: making a directory for its socket: %w", sealed.ErrUnavailable)
	}
	p := &process{dir: dir}
	p.client = plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  handshake(),
		Plugins:          plugin.PluginSet{pluginName: &wire{}},
		Cmd:              command(program, file, dir),
		SkipHostEnv:      true,
		SecureConfig:     &plugin.SecureConfig{Checksum: sum, Hash: sha256.New()},
		AutoMTLS:         true,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		StartTimeout:     source.Timeout,
		Logger:           hclog.NewNullLogger(),
		GRPCDialOptions:  []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage))},
	})
	if err := p.connect(); err != nil {
		p.kill()
		return nil, err
	}
	return p, nil
}

// command runs the open file. Its environment is what go-plugin adds to this:
// its handshake, and the certificate of the engine.
func command(program string, file *os.File, dir string) *exec.Cmd {
	path := program
	if runtime.GOOS == "linux" {
		path = fmt.Sprintf("/proc/self/fd/%d", file.Fd())
	}
	return &exec.Cmd{
		Path: path, Args: []string{filepath.Base(program)}, Dir: "/", SysProcAttr: dieWithUs(),
		Env: []string{"GOTRACEBACK=none", plugin.EnvUnixSocketDir + "=" + dir},
	}
}

func (p *process) connect() error {
	rpc, err := p.client.Client()
	if errors.Is(err, plugin.ErrChecksumsDoNotMatch) {
		return fmt.Errorf("starting the helper: it is not the program that the configuration names: %w", sealed.ErrUnavailable)
	}
	if err != nil {
		return fmt.Errorf("starting the helper: it does not come up: %w", sealed.ErrUnavailable)
	}
	raw, err := rpc.Dispense(pluginName)
	conn, ok := raw.(*grpc.ClientConn)
	if err != nil || !ok {
		return fmt.Errorf("starting the helper: it is none: %w", sealed.ErrUnavailable)
	}
	p.conn = conn
	return nil
}

func (p *process) exited() bool { return p.client.Exited() }

// kill ends the process and removes its socket. It may be called again.
func (p *process) kill() {
	p.once.Do(func() {
		p.client.Kill()
		_ = os.RemoveAll(p.dir)
	})
}

// call makes one call. The error is one of gRPC.
func (p *process) call(ctx context.Context, method string, r request) (answer, error) {
	doc, err := encode(r)
	if err != nil {
		return answer{}, err
	}
	var out wrapperspb.BytesValue
	if err := p.conn.Invoke(ctx, "/"+serviceName+"/"+method, wrapperspb.Bytes(doc), &out); err != nil {
		return answer{}, err
	}
	defer clear(out.Value)
	var got answer
	if json.Unmarshal(out.Value, &got) != nil {
		return answer{}, status.Error(codes.Internal, "malformed answer")
	}
	return got, nil
}
