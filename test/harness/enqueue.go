package harness

import (
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/workspace"
)

// Enqueue is what a guest enqueues that plays init itself: a run with keys,
// without input or files, in a sandbox of its own uid and without network.
// Each one has a fresh idempotency key.
func Enqueue(t testing.TB, agent sealed.Name, profile string) sealed.EnqueueRequest {
	t.Helper()
	idem, err := sealed.NewULID(time.Now(), nil)
	Must(t, err)
	return sealed.EnqueueRequest{
		IdempotencyKey: idem, Agent: agent, Mode: sealed.ModeJIT, Profile: sealed.ProfileName(profile),
		CommandDigest: sealed.CommandDigest([]string{"/bin/true"}), WorkspaceDigest: workspace.EmptyDigest(),
		Sandbox: sealed.SandboxSpec{Backend: sealed.BackendLocal, Isolation: sealed.IsolationOwnUID, Network: sealed.NetworkNone, WallTime: sealed.Duration(time.Hour)},
	}
}
