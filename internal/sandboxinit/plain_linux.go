package sandboxinit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// plainWall bounds a sandboxed run; the supervisor enforces the real limit.
const plainWall = 24 * time.Hour

// runPlain carries out a run of mode sandboxed: the walls, and nothing else.
// There is no identity, no Vault, no key, no way out, and no record; the
// supervisor tells the engine when it has ended.
func (r *runner) runPlain() (int, error) {
	exe, err := openExecutable(r.boot.Argv[0], agentPath)
	if err != nil {
		return 0, err
	}
	r.exe, r.wall = exe, plainWall
	env := []string{"PATH=" + agentPath, "HOME=/home/agent", "TMPDIR=/tmp", "USER=agent", "LANG=C.UTF-8", "SEALED_RUN=" + string(r.boot.Run)}
	if r.boot.Interactive {
		env = append(env, "TERM=xterm-256color")
	}
	if r.agent, err = start(exe, r.boot, env, r.stdout, r.stderr); err != nil {
		return 0, err
	}
	r.agent.reap()
	go r.obey()
	status, reason := r.attend(context.Background())
	killAll()
	if err := r.agent.drain(drainLimit); err != nil {
		return 0, fmt.Errorf("ending run: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), endLimit)
	defer cancel()
	msg := sealed.RelayControl{Type: "finished", Exit: status, Message: reason, Digests: map[string]string{"stdout": r.stdout.digest(), "stderr": r.stderr.digest()}}
	return status, errors.Join(r.control.Send(msg), r.relay.Flush(ctx))
}
