package devstack

import (
	"context"
	"errors"
	"strings"
	"testing"

	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/debug/v1"
	"google.golang.org/grpc"

	"sealed.dev/sealed/internal/sealed"
)

// agentDouble answers as an agent that holds some SVIDs.
type agentDouble struct {
	svids int32
	err   error
}

func (a agentDouble) GetInfo(context.Context, *debugv1.GetInfoRequest, ...grpc.CallOption) (*debugv1.GetInfoResponse, error) {
	return &debugv1.GetInfoResponse{CachedX509SvidsCount: a.svids}, a.err
}

// TestServesEntries: the stack is up when the agent serves all entries, and
// says how many are missing when it does not get there.
func TestServesEntries(t *testing.T) {
	for _, have := range []int32{0, 1, 4} {
		err := servesEntries(t.Context(), agentDouble{svids: have}, 5)
		if !errors.Is(err, sealed.ErrUnavailable) || !strings.Contains(err.Error(), "of 5 entries") {
			t.Errorf("%d of 5: %v", have, err)
		}
	}
	for _, have := range []int32{5, 6} {
		if err := servesEntries(t.Context(), agentDouble{svids: have}, 5); err != nil {
			t.Errorf("%d of 5: %v", have, err)
		}
	}
	if err := servesEntries(t.Context(), agentDouble{svids: 5, err: errors.New("no answer")}, 5); err == nil {
		t.Error("an agent that does not answer is ready")
	}
}
