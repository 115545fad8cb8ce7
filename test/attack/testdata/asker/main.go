// Command asker is a sealed-init that asks for identities as often as it is
// told to (D11). Its boot document's command is a list of steps; each that can
// fail prints "yes STEP" or "no STEP: why".
//
//	fetch    asks the Workload API for an identity
//	wait     until the second window of the attestor is over
//	claim    tells the launcher that the run is claimed, and waits for its word
//	spawn    starts a second process, which stays
//	child    has a second process ask, which ends then
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"sealed.dev/sealed/internal/relay"
	"sealed.dev/sealed/internal/sealed"
)

// pastWindow is longer than the attestor's window after the first success.
const pastWindow = 10*time.Second + 500*time.Millisecond

func main() {
	switch {
	case len(os.Args) == 2 && os.Args[1] == "stay":
		time.Sleep(time.Minute)
	case len(os.Args) == 2 && os.Args[1] == "ask":
		if fetch(3) != nil {
			os.Exit(1)
		}
	default:
		if err := initProcess(); err != nil {
			fmt.Println("no", err)
			os.Exit(1)
		}
	}
}

func initProcess() error {
	b, err := io.ReadAll(os.NewFile(sealed.BootFD, "boot"))
	if err != nil {
		return err
	}
	var boot sealed.Boot
	if err := json.Unmarshal(b, &boot); err != nil {
		return err
	}
	for _, step := range boot.Argv {
		say(step, do(step))
	}
	return nil
}

func do(step string) error {
	switch step {
	case "fetch":
		return fetch(sealed.SPIFFEFD)
	case "wait":
		time.Sleep(pastWindow)
		return nil
	case "claim":
		return claim()
	case "spawn":
		return exec.Command("/proc/self/exe", "stay").Start()
	case "child":
		cmd := exec.Command("/proc/self/exe", "ask")
		cmd.ExtraFiles = []*os.File{os.NewFile(sealed.SPIFFEFD, "spiffe")}
		return cmd.Run()
	}
	return fmt.Errorf("unknown step")
}

func say(step string, err error) {
	if err != nil {
		fmt.Printf("no %s: %v\n", step, err)
		return
	}
	fmt.Println("yes", step)
}

func fetch(fd int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr(fmt.Sprintf("unix:///proc/self/fd/%d", fd)))
	return err
}

// claim says what init says after its claim, and waits for an answer, which the
// real launcher does not give.
func claim() error {
	conn, err := net.FileConn(os.NewFile(sealed.RelayFD, "relay"))
	if err != nil {
		return err
	}
	c, err := relay.NewClient(conn)
	if err != nil {
		return err
	}
	control, err := c.Control(context.Background())
	if err != nil {
		return err
	}
	if err := control.Send(sealed.RelayControl{Type: relay.ControlClaimed}); err != nil {
		return err
	}
	_, err = control.Receive()
	return err
}
