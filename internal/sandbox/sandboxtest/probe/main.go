// Command probe is process 1 of a sandbox in tests, in the place of
// sealed-init. It does what the boot document's Argv says:
//
//	report            print a sandboxtest.Report as JSON
//	hold              start two daemons that outlive their parents, print "holding", wait
//	secret TEXT       print "holding" with TEXT in memory, wait
//	shell SCRIPT      run SCRIPT with /bin/sh, exit as it does
//	run SCRIPT        the same, around the relay's control stream: "claimed" before, "finished" after
//	echo              copy standard input to standard output, print control messages
//	give-up           say "failed" with status 3 on the control stream, exit with it
//	drop-relay        close the relay, wait
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"sealed.dev/sealed/internal/relay"
	"sealed.dev/sealed/internal/sandbox"
	"sealed.dev/sealed/internal/sandbox/sandboxtest"
	"sealed.dev/sealed/internal/sealed"
)

func main() {
	descriptors := sandboxtest.OpenDescriptors() // before the runtime opens any
	if len(os.Args) == 2 && os.Args[1] == "daemon" {
		time.Sleep(time.Hour)
		return
	}
	if len(os.Args) == 2 && os.Args[1] == "fork" {
		if err := daemon("daemon").Start(); err != nil {
			os.Exit(1)
		}
		return
	}
	var boot sealed.Boot
	if err := json.NewDecoder(io.LimitReader(os.NewFile(sealed.BootFD, "boot"), sealed.MaxBoot)).Decode(&boot); err != nil {
		fmt.Fprintln(os.Stderr, "probe: reading boot document:", err)
		os.Exit(125)
	}
	code, err := do(boot, descriptors)
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
	}
	os.Exit(code)
}

func do(boot sealed.Boot, descriptors []int) (int, error) {
	if len(boot.Argv) == 0 {
		return 125, errors.New("no command")
	}
	arg := strings.Join(boot.Argv[1:], " ")
	switch boot.Argv[0] {
	case "report":
		return 0, json.NewEncoder(os.Stdout).Encode(sandboxtest.Examine(descriptors))
	case "hold":
		for range 2 {
			if err := daemon("fork").Run(); err != nil {
				return 125, err
			}
		}
		return hold(nil)
	case "secret":
		return hold([]byte(arg))
	case "shell":
		return shell(arg)
	case "run":
		return run(arg)
	case "echo":
		return echo()
	case "give-up":
		return giveUp()
	case "drop-relay":
		if err := syscall.Close(sealed.RelayFD); err != nil {
			return 125, err
		}
		return hold(nil)
	}
	return 125, errors.New("unknown command")
}

// daemon is a process in a session of its own.
func daemon(what string) *exec.Cmd {
	cmd := exec.Command(sandbox.InitPath, what)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

func hold(secret []byte) (int, error) {
	fmt.Println("holding")
	time.Sleep(time.Hour)
	return len(secret), nil
}

func shell(script string) (int, error) {
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + sandbox.HomeDir}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	if err != nil {
		return 125, err
	}
	return 0, nil
}

func control() (*relay.Client, *relay.Control, error) {
	conn, err := net.FileConn(os.NewFile(sealed.RelayFD, "relay"))
	if err != nil {
		return nil, nil, err
	}
	client, err := relay.NewClient(conn)
	if err != nil {
		return nil, nil, err
	}
	ctl, err := client.Control(context.Background())
	return client, ctl, err
}

func run(script string) (int, error) {
	client, ctl, err := control()
	if err != nil {
		return 125, err
	}
	defer client.Close()
	if err := ctl.Send(sealed.RelayControl{Type: relay.ControlClaimed}); err != nil {
		return 125, err
	}
	code, err := shell(script)
	if err != nil {
		return code, err
	}
	var quarantine []string
	if b, err := os.ReadFile(sandbox.RunDir + "/quarantine"); err == nil {
		quarantine = strings.Fields(string(b))
	}
	if err := ctl.Send(sealed.RelayControl{Type: relay.ControlFinished, Exit: code, Record: `{"record":true}`, Quarantine: quarantine}); err != nil {
		return 125, err
	}
	return code, client.Flush(context.Background())
}

func giveUp() (int, error) {
	client, ctl, err := control()
	if err != nil {
		return 125, err
	}
	defer client.Close()
	if err := ctl.Send(sealed.RelayControl{Type: relay.ControlFailed, Exit: 3, Message: "denied by policy"}); err != nil {
		return 125, err
	}
	return 3, client.Flush(context.Background())
}

// echo also obeys a "signal" control message: it finishes with 128 plus its
// number.
func echo() (int, error) {
	client, ctl, err := control()
	if err != nil {
		return 125, err
	}
	defer client.Close()
	if err := ctl.Send(sealed.RelayControl{Type: relay.ControlClaimed}); err != nil {
		return 125, err
	}
	fmt.Println("ready")
	go func() {
		lines := bufio.NewScanner(os.Stdin)
		for lines.Scan() {
			fmt.Println("got", lines.Text())
		}
	}()
	for {
		msg, err := ctl.Receive()
		if err != nil {
			return 125, err
		}
		fmt.Println("control", msg.Type, msg.Rows, msg.Cols, msg.Signal)
		if msg.Type == relay.ControlSignal {
			code := 128 + msg.Signal
			if err := ctl.Send(sealed.RelayControl{Type: relay.ControlFinished, Exit: code}); err != nil {
				return 125, err
			}
			return code, client.Flush(context.Background())
		}
	}
}
