package sealed

import (
	"errors"
	"strings"
	"testing"
)

func TestCovers(t *testing.T) {
	full := Subject{Tenant: "acme", Run: "01ARZ3NDEKTSV4RRFFQ69G5FAV", SPIFFEID: "spiffe://x/sealed/tenant/acme/agent/codex", Profiles: []ProfileName{"team/release", "default"}, Key: "TOKEN", Source: "kv"}
	run := full // the run as a whole, before any key
	run.Key, run.Profiles, run.Source = "", nil, ""
	unclaimed := full
	unclaimed.SPIFFEID = ""
	cases := []struct {
		kind, target string
		s            Subject
		want         bool
	}{
		{RevokeTenant, "acme", full, true}, {RevokeTenant, "acme", run, true}, {RevokeTenant, "acm", full, false}, {RevokeTenant, "ACME", full, false}, {RevokeTenant, "acmee", full, false},
		{RevokeRun, string(full.Run), full, true}, {RevokeRun, string(full.Run), run, true}, {RevokeRun, "01ARZ3NDEKTSV4RRFFQ69G5FAW", full, false}, {RevokeRun, strings.ToLower(string(full.Run)), full, false},
		{RevokeIdentity, full.SPIFFEID, full, true}, {RevokeIdentity, full.SPIFFEID, unclaimed, false}, {RevokeIdentity, full.SPIFFEID + "x", full, false}, {RevokeIdentity, "", unclaimed, false},
		{RevokeProfile, "team/release", full, true}, {RevokeProfile, "default", full, true}, {RevokeKey, "default#TOKEN", full, true}, {RevokeProfile, "team", full, false}, {RevokeProfile, "team/release2", full, false}, {RevokeProfile, "", run, false},
		{RevokeSource, "kv", full, true}, {RevokeSource, "kv2", full, false}, {RevokeSource, "", run, false},
		{RevokeKey, "TOKEN", full, true}, {RevokeKey, "team/release#TOKEN", full, true}, {RevokeKey, "team/other#TOKEN", full, false}, {RevokeKey, "#TOKEN", full, false}, {RevokeKey, "TOKE", full, false},
		{RevokeKey, "token", full, false}, {RevokeKey, "TOKEN", run, false}, {RevokeKey, "", run, false}, {RevokeKey, "#", run, false}, {RevokeKey, "team/release#", run, false},
		{"", "x", full, true}, {"everything", "x", run, true}, {"KEY", "TOKEN", full, true}, // unknown: fail closed
	}
	for _, c := range cases {
		for _, hard := range []bool{false, true} {
			if got := (Revocation{Kind: c.kind, Target: c.target, Hard: hard}).Covers(c.s); got != c.want {
				t.Errorf("%s %q hard=%v of %+v: got %v, want %v", c.kind, c.target, hard, c.s, got, c.want)
			}
		}
	}
}

func TestRevocationValidate(t *testing.T) {
	for _, kind := range []string{RevokeKey, RevokeProfile, RevokeSource, RevokeIdentity, RevokeRun, RevokeTenant} {
		if err := (Revocation{Kind: kind, Target: "x", Reason: "leak"}).Validate(); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
	for field, rs := range map[string][]Revocation{
		"kind":   {{}, {Kind: "all", Target: "x", Reason: "y"}, {Kind: "Key", Target: "x", Reason: "y"}},
		"target": {{Kind: RevokeKey, Reason: "y"}, {Kind: RevokeKey, Target: strings.Repeat("x", 513), Reason: "y"}},
		"reason": {{Kind: RevokeKey, Target: "x"}, {Kind: RevokeKey, Target: "x", Reason: strings.Repeat("y", MaxReason+1)}},
	} {
		for _, r := range rs {
			var fe *FieldError
			if err := r.Validate(); !errors.As(err, &fe) || fe.Field != field {
				t.Errorf("%+v: got %v, want field %s", r, err, field)
			}
		}
	}
}
