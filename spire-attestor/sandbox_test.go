package spireattestor_test

import (
	"strings"
	"testing"
)

const fetched = "ok " + agentID + " " + agentID

func TestInitInSandboxGetsBothSVIDs(t *testing.T) {
	w := newWorld(t)
	sb := w.start(sandboxSpec{})
	r := w.register(sb)
	if r.Isolation != "own_uid" || r.InitSHA256 != w.digest {
		t.Errorf("registration = %q, %q; want own_uid, %q", r.Isolation, r.InitSHA256, w.digest)
	}
	if got := sb.say("fetch"); got != fetched {
		t.Errorf("fetch = %q, want %q\n%s", got, fetched, w.log)
	}
	if strings.Contains(w.log.String(), "refused") {
		t.Errorf("log has a refusal:\n%s", w.log)
	}
}
