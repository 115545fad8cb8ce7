// Command init stands in for sealed-init in the attestor's tests. It reads
// commands from stdin and answers one line each on stdout:
//
//	ready             ok
//	fetch             fetch both SVIDs through the O_PATH descriptor 4
//	spawn             start a second process that only waits
//	spawn-fetch       start a second process that fetches through descriptor 4
//	relay             connect here, hand the connection to a second process
//	kill              end the second process
//
// An answer is "ok", "ok <x509 id> <jwt id>" or "error <text>".
package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

const socketFD = "/proc/self/fd/4"

func main() {
	if len(os.Args) > 1 {
		child(os.Args[1])
		return
	}
	var other *exec.Cmd
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var err error
		var out string
		switch in.Text() {
		case "ready":
		case "fetch":
			out, err = fetch()
		case "spawn":
			other, err = start("wait")
		case "kill":
			_ = other.Process.Kill()
			_ = other.Wait()
		case "spawn-fetch", "relay":
			out, err = ask(in.Text())
		default:
			err = fmt.Errorf("unknown command")
		}
		if err != nil {
			fmt.Println("error", strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		fmt.Println(strings.TrimSpace("ok " + out))
	}
}

// child is the second process.
func child(what string) {
	var out string
	var err error
	switch what {
	case "wait":
		fmt.Println("ok")
		time.Sleep(time.Hour)
	case "spawn-fetch":
		out, err = fetch()
	case "relay":
		out, err = fetchOver(os.NewFile(3, "relayed"))
	}
	if err != nil {
		out = "error " + strings.ReplaceAll(err.Error(), "\n", " ")
	}
	fmt.Println(out)
}

// second is this program again. It inherits stdin and stderr because the
// sandbox has no /dev/null.
func second(what string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", what)
	cmd.Stdin, cmd.Stderr = os.Stdin, os.Stderr
	return cmd
}

// start starts a second process and waits for its first line.
func start(what string, files ...*os.File) (*exec.Cmd, error) {
	cmd := second(what)
	cmd.ExtraFiles = files
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	_, err = bufio.NewReader(pipe).ReadString('\n')
	return cmd, err
}

func ask(what string) (string, error) {
	cmd := second(what)
	if what == "relay" {
		conn, err := net.Dial("unix", socketFD)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		f, err := conn.(*net.UnixConn).File()
		if err != nil {
			return "", err
		}
		defer f.Close()
		cmd.ExtraFiles = []*os.File{f}
	} else {
		// The second process gets the O_PATH descriptor under the same number.
		cmd.ExtraFiles = []*os.File{os.Stdin, os.NewFile(4, "socket")}
	}
	out, err := cmd.Output()
	text := strings.TrimSpace(string(out))
	if msg, failed := strings.CutPrefix(text, "error "); failed {
		return "", fmt.Errorf("%s", msg)
	}
	return text, err
}

func fetch() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	addr := workloadapi.WithAddr("unix://" + socketFD)
	x, err := workloadapi.FetchX509SVID(ctx, addr)
	if err != nil {
		return "", err
	}
	j, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "vault"}, addr)
	if err != nil {
		return "", err
	}
	return x.ID.String() + " " + j.ID.String(), nil
}

// fetchOver speaks the Workload API over a connection that another process made.
func fetchOver(f *os.File) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
	cc, err := grpc.NewClient("passthrough:///relayed",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return net.FileConn(f) }))
	if err != nil {
		return "", err
	}
	defer cc.Close()
	resp, err := workload.NewSpiffeWorkloadAPIClient(cc).FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"vault"}})
	if err != nil {
		return "", err
	}
	return resp.Svids[0].SpiffeId, nil
}
