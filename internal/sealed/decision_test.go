package sealed

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseDecision(t *testing.T) {
	const reasons = `"reasons":[{"code":"c","msg":"m"}]`
	good := map[string]Decision{
		`{"effect":"allow","reasons":[],"obligations":{"approvals":{}}}`: {Effect: EffectAllow, Reasons: []Reason{}},
		`{"effect":"allow","obligations":{"ttl":60,"delivery":"proxy","egress":"bound","approvals":{}}}`: {
			Effect: EffectAllow, Obligations: Obligations{TTL: 60, Delivery: DeliveryProxy, Egress: "bound"}},
		`{"effect":"deny",` + reasons + `}`: {Effect: EffectDeny, Reasons: []Reason{{"c", "m"}}},
		`{"effect":"require_approval",` + reasons + `,"obligations":{"approvals":{"quorum":2,"groups":["g"],"ttl":9}}}`: {
			Effect: EffectRequireApproval, Reasons: []Reason{{"c", "m"}}, Obligations: Obligations{Approvals: ApprovalObligations{Quorum: 2, Groups: []string{"g"}, TTL: 9}}},
	}
	for doc, want := range good {
		got, err := ParseDecision([]byte(doc))
		if err != nil || cmp.Diff(want, got) != "" {
			t.Errorf("%s: %v %s", doc, err, cmp.Diff(want, got))
		}
	}
	bad := map[string]string{
		"undefined": ``, "null": `null`, "true": `true`, "text": `"allow"`, "list": `[]`, "empty object": `{}`, "conflict": `{"effect":["allow","deny"],` + reasons + `}`,
		"no effect": `{` + reasons + `}`, "empty effect": `{"effect":"",` + reasons + `}`, "unknown effect": `{"effect":"permit",` + reasons + `}`, "upper case": `{"effect":"ALLOW",` + reasons + `}`,
		"with space": `{"effect":"allow ",` + reasons + `}`, "boolean": `{"effect":true,` + reasons + `}`, "null effect": `{"effect":null,` + reasons + `}`,
		"unknown field": `{"effect":"allow","allow":true}`, "unknown obligation": `{"effect":"allow","obligations":{"mfa":true}}`, "unknown approval field": `{"effect":"allow","obligations":{"approvals":{"n":1}}}`,
		"effect twice": `{"effect":"deny",` + reasons + `,"effect":"allow"}`, "effect in two cases": `{"effect":"deny",` + reasons + `,"Effect":"allow"}`, "trailing": `{"effect":"allow"}{"effect":"deny"}`,
		"negative ttl": `{"effect":"allow","obligations":{"ttl":-1}}`, "fraction": `{"effect":"allow","obligations":{"ttl":1.5}}`, "ttl text": `{"effect":"allow","obligations":{"ttl":"15m"}}`,
		"negative quorum": `{"effect":"allow","obligations":{"approvals":{"quorum":-1}}}`, "negative approval ttl": `{"effect":"allow","obligations":{"approvals":{"ttl":-1}}}`,
		"unknown delivery": `{"effect":"allow","obligations":{"delivery":"file"}}`, "unknown egress": `{"effect":"allow","obligations":{"egress":"any"}}`,
		"approval by nobody": `{"effect":"require_approval",` + reasons + `}`, "no groups": `{"effect":"require_approval",` + reasons + `,"obligations":{"approvals":{"quorum":1}}}`,
		"no quorum":       `{"effect":"require_approval",` + reasons + `,"obligations":{"approvals":{"groups":["g"]}}}`,
		"deny, no reason": `{"effect":"deny"}`, "approval, no reason": `{"effect":"require_approval","reasons":[],"obligations":{"approvals":{"quorum":1,"groups":["g"]}}}`,
		"reasons as text": `{"effect":"deny","reasons":["no"]}`, "too large": `{"effect":"allow","reasons":[{"code":"c","msg":"` + string(make([]byte, 64<<10)) + `"}]}`,
	}
	for name, doc := range bad {
		got, err := ParseDecision([]byte(doc))
		if !errors.Is(err, ErrInvalid) || cmp.Diff(Decision{}, got) != "" {
			t.Errorf("%s: got %+v, %v, want ErrInvalid and nothing", name, got, err)
		}
	}
}

func approval(quorum int, ttl int64, groups ...string) Decision {
	return Decision{Effect: EffectRequireApproval, Reasons: []Reason{{"ask", "ask"}}, Obligations: Obligations{Approvals: ApprovalObligations{Quorum: quorum, Groups: groups, TTL: ttl}}}
}

func allow(o Obligations) Decision { return Decision{Effect: EffectAllow, Obligations: o} }

func reviewed(within int64, groups ...string) Decision {
	return allow(Obligations{Review: ReviewObligation{Within: within, Groups: groups}})
}

func TestCombine(t *testing.T) {
	deny := Deny("no", "no")
	cases := map[string]struct {
		in   []Decision
		want Decision
	}{
		"none":             {nil, Deny(ReasonUndefined, "no policy answered")},
		"one":              {[]Decision{allow(Obligations{TTL: 9})}, allow(Obligations{TTL: 9})},
		"deny wins":        {[]Decision{allow(Obligations{}), approval(1, 0, "g"), deny}, Decision{Effect: EffectDeny, Reasons: deny.Reasons, Obligations: Obligations{Approvals: ApprovalObligations{Quorum: 1, Groups: []string{"g"}}}}},
		"reasons united":   {[]Decision{deny, Deny("no", "no"), Deny("b", "b")}, Decision{Effect: EffectDeny, Reasons: []Reason{{"no", "no"}, {"b", "b"}}}},
		"weaker is silent": {[]Decision{{Effect: EffectAllow, Reasons: []Reason{{"ok", "ok"}}}, deny}, deny},
		"approval over allow": {[]Decision{allow(Obligations{TTL: 60}), approval(2, 5, "g")}, Decision{Effect: EffectRequireApproval, Reasons: []Reason{{"ask", "ask"}},
			Obligations: Obligations{TTL: 60, Approvals: ApprovalObligations{Quorum: 2, Groups: []string{"g"}, TTL: 5}}}},
		"common groups":   {[]Decision{approval(1, 9, "a", "b"), approval(2, 5, "b", "c")}, approval(2, 5, "b")},
		"no common group": {[]Decision{approval(1, 0, "a"), approval(1, 0, "b")}, Deny(ReasonShape, "the policies name no common group of approvers")},
		"no common group of three": {[]Decision{approval(1, 0, "a"), approval(1, 0, "b"), approval(1, 0, "a", "b")},
			Deny(ReasonShape, "the policies name no common group of approvers")},
		"least ttl":          {[]Decision{allow(Obligations{TTL: 60}), allow(Obligations{}), allow(Obligations{TTL: 9})}, allow(Obligations{TTL: 9})},
		"strongest delivery": {[]Decision{allow(Obligations{Delivery: DeliveryEnv}), allow(Obligations{Delivery: DeliveryProxy}), allow(Obligations{})}, allow(Obligations{Delivery: DeliveryProxy})},
		"review of one":      {[]Decision{allow(Obligations{}), reviewed(60, "g", "h")}, reviewed(60, "g", "h")},
		"reviews in common":  {[]Decision{reviewed(60, "g", "h"), reviewed(9, "h", "i"), allow(Obligations{})}, reviewed(9, "h")},
		"no common reviewer": {[]Decision{reviewed(60, "g"), reviewed(60, "h")}, Deny(ReasonShape, "the policies name no common group of reviewers")},
		"egress":             {[]Decision{allow(Obligations{}), allow(Obligations{Egress: "bound"}), allow(Obligations{})}, allow(Obligations{Egress: "bound"})},
		"zero is deny":       {[]Decision{{}}, Decision{Effect: EffectDeny, Reasons: []Reason{{ReasonShape, "a policy denied without a reason"}}}},
		"unknown is deny":    {[]Decision{allow(Obligations{}), {Effect: "permit", Reasons: []Reason{{"x", "x"}}}}, Decision{Effect: EffectDeny, Reasons: []Reason{{"x", "x"}}}},
		"zero before deny":   {[]Decision{{}, deny}, deny},
	}
	for name, c := range cases {
		if diff := cmp.Diff(c.want, Combine(c.in...)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// decisions is every combination of a few values of each field.
func decisions() []Decision {
	out := []Decision{{}, {Effect: "permit"}}
	for _, e := range []Effect{EffectDeny, EffectRequireApproval, EffectAllow} {
		for _, ttl := range []int64{0, 30, 60} {
			for _, d := range []Delivery{"", DeliveryEnv, DeliveryProxy} {
				for _, egress := range []string{"", "bound"} {
					for _, a := range []ApprovalObligations{{}, {Quorum: 1, Groups: []string{"a", "b"}}, {Quorum: 2, Groups: []string{"b", "c"}, TTL: 9}, {Quorum: 1, Groups: []string{"c"}, TTL: 5}} {
						if e != EffectRequireApproval || a.Quorum > 0 {
							out = append(out, Decision{Effect: e, Reasons: []Reason{{"r", string(e)}}, Obligations: Obligations{TTL: ttl, Delivery: d, Egress: egress, Approvals: a}})
						}
					}
				}
			}
		}
	}
	return out
}

// tighter reports whether nothing is allowed under a that is not under b.
func tighter(a, b Obligations) bool {
	ttl := b.TTL == 0 || (a.TTL > 0 && a.TTL <= b.TTL)
	delivery := b.Delivery == "" || a.Delivery.Stronger(b.Delivery)
	egress := b.Egress == "" || a.Egress == b.Egress
	x, y := a.Approvals, b.Approvals
	groups := y.Quorum == 0 || !slices.ContainsFunc(x.Groups, func(g string) bool { return !slices.Contains(y.Groups, g) })
	return ttl && delivery && egress && x.Quorum >= y.Quorum && groups && (y.TTL == 0 || (x.TTL > 0 && x.TTL <= y.TTL))
}

// For every pair: the stronger effect wins, order changes nothing, and each
// obligation holds at least as tightly as in both. With a third one the same.
func TestCombineProperties(t *testing.T) {
	all := decisions()
	third := []Decision{{}, Deny("x", "x"), approval(2, 7, "b"), allow(Obligations{TTL: 45, Delivery: DeliveryProxy})}
	for _, a := range all {
		for _, b := range all {
			ab, ba := Combine(a, b), Combine(b, a)
			if ab.Effect != ba.Effect || !tighter(ab.Obligations, ba.Obligations) || !tighter(ba.Obligations, ab.Obligations) {
				t.Fatalf("order counts: %+v and %+v give %+v or %+v", a, b, ab, ba)
			}
			if strength(ab.Effect) < max(strength(a.Effect), strength(b.Effect)) || !slices.Contains([]Effect{EffectAllow, EffectRequireApproval, EffectDeny}, ab.Effect) {
				t.Fatalf("%q and %q give %q", a.Effect, b.Effect, ab.Effect)
			}
			if ab.Effect != EffectAllow && len(ab.Reasons) == 0 {
				t.Fatalf("%+v and %+v give no reason", a, b)
			}
			if ab.Effect != EffectDeny && (!tighter(ab.Obligations, a.Obligations) || !tighter(ab.Obligations, b.Obligations)) {
				t.Fatalf("loosened: %+v and %+v give %+v", a, b, ab)
			}
			for _, c := range third {
				if abc, acb := Combine(a, b, c), Combine(a, Combine(b, c)); strength(abc.Effect) < strength(ab.Effect) || abc.Effect != acb.Effect {
					t.Fatalf("%+v with %+v: %s or %s", ab, c, abc.Effect, acb.Effect)
				}
			}
		}
	}
}

func FuzzParseDecision(f *testing.F) {
	f.Add([]byte(`{"effect":"allow","reasons":[],"obligations":{"approvals":{}}}`))
	f.Add([]byte(`{"effect":"deny","Effect":"allow","reasons":[{"code":"c","msg":"m"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := ParseDecision(data)
		if err != nil {
			if !errors.Is(err, ErrInvalid) || d.Effect != "" {
				t.Fatalf("%+v, %v", d, err)
			}
			return
		}
		if c := Combine(d, Deny("x", "x")); c.Effect != EffectDeny {
			t.Fatalf("%+v overrides a denial", d)
		}
	})
}
