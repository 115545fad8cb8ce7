package sealed

import (
	"testing"
	"time"
)

func vote(person string, groups ...string) Vote {
	return Vote{Person: person, EntityID: "e-" + person, Yes: true, Groups: groups}
}

func TestApproved(t *testing.T) {
	no := vote("cy", "g")
	no.Yes = false
	outsider := vote("dan", "other")
	outsider.Yes = false
	sameEntity := vote("bob", "g")
	sameEntity.EntityID = "e-ann"
	cases := map[string]struct {
		quorum int
		groups []string
		votes  []Vote
		want   bool
	}{
		"no votes":                   {1, []string{"g"}, nil, false},
		"one of one":                 {1, []string{"g"}, []Vote{vote("bob", "g")}, true},
		"one of two":                 {2, []string{"g"}, []Vote{vote("bob", "g")}, false},
		"two of two":                 {2, []string{"g"}, []Vote{vote("bob", "g"), vote("cy", "g")}, true},
		"more than asked":            {1, []string{"g"}, []Vote{vote("bob", "g"), vote("cy", "g")}, true},
		"one person twice":           {2, []string{"g"}, []Vote{vote("bob", "g"), vote("bob", "g")}, false},
		"one person in two cases":    {2, []string{"g"}, []Vote{vote("bob@acme.test", "g"), vote("Bob@ACME.test", "g")}, false},
		"case by folding":            {2, []string{"g"}, []Vote{vote("kay", "g"), vote("\u212aay", "g")}, false}, // KELVIN SIGN
		"requester":                  {1, []string{"g"}, []Vote{vote("ann", "g")}, false},
		"requester in other case":    {1, []string{"g"}, []Vote{vote("ANN", "g")}, false},
		"requester by entity":        {1, []string{"g"}, []Vote{sameEntity}, false},
		"requester among others":     {2, []string{"g"}, []Vote{vote("ann", "g"), vote("bob", "g")}, false},
		"person unknown":             {1, []string{"g"}, []Vote{vote("", "g")}, false},
		"other group":                {1, []string{"g"}, []Vote{vote("bob", "h")}, false},
		"group in other case":        {1, []string{"g"}, []Vote{vote("bob", "G")}, false},
		"no group":                   {1, []string{"g"}, []Vote{vote("bob")}, false},
		"one of several groups":      {2, []string{"g", "h"}, []Vote{vote("bob", "x", "h"), vote("cy", "g")}, true},
		"object without groups":      {1, nil, []Vote{vote("bob", "g")}, false},
		"one no":                     {1, []string{"g"}, []Vote{vote("bob", "g"), no}, false},
		"one no first":               {1, []string{"g"}, []Vote{no, vote("bob", "g")}, false},
		"a no from outside counts":   {1, []string{"g"}, []Vote{vote("bob", "g"), outsider}, false},
		"quorum zero":                {0, []string{"g"}, []Vote{vote("bob", "g")}, false},
		"quorum zero without a vote": {0, []string{"g"}, nil, false},
		"quorum negative":            {-1, []string{"g"}, nil, false},
	}
	for name, c := range cases {
		o := ApprovalObject{RequesterID: "e-ann", Person: "ann", Quorum: c.quorum, Groups: c.groups}
		if got := o.Approved(c.votes); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
	t.Run("a requester without a person", func(t *testing.T) {
		o := ApprovalObject{RequesterID: "e-ann", Quorum: 1, Groups: []string{"g"}}
		if o.Approved([]Vote{vote("ann", "g")}) || !o.Approved([]Vote{vote("bob", "g")}) {
			t.Error("the entity decides then")
		}
	})
}

// Whatever a person was shown is in the digest.
func TestApprovalObjectDigest(t *testing.T) {
	base := ApprovalObject{V: 1, ID: "a", Tenant: "acme", Run: "r", Key: "TOKEN", Quorum: 1, Groups: []string{"g"}}
	seen := map[Digest]string{}
	changes := map[string]func(*ApprovalObject){
		"nothing": func(*ApprovalObject) {}, "v": func(o *ApprovalObject) { o.V = 2 }, "id": func(o *ApprovalObject) { o.ID = "b" }, "tenant": func(o *ApprovalObject) { o.Tenant = "x" }, "run": func(o *ApprovalObject) { o.Run = "s" },
		"manifest": func(o *ApprovalObject) { o.ManifestDigest = "m" }, "command": func(o *ApprovalObject) { o.CommandDigest = "c" }, "agent": func(o *ApprovalObject) { o.Agent = "a" }, "workflow": func(o *ApprovalObject) { o.Workflow = "w" },
		"profile": func(o *ApprovalObject) { o.Profile = "p" }, "key": func(o *ApprovalObject) { o.Key = "OTHER" }, "spec": func(o *ApprovalObject) { o.SpecDigest = "s" }, "risk": func(o *ApprovalObject) { o.Risk = "low" },
		"delivery": func(o *ApprovalObject) { o.Delivery = DeliveryEnv }, "bindings": func(o *ApprovalObject) { o.Bindings = []Binding{binding(nil)} }, "ttl": func(o *ApprovalObject) { o.TTL = 1 }, "isolation": func(o *ApprovalObject) { o.Isolation = "x" },
		"requester": func(o *ApprovalObject) { o.Requester = "x" }, "requester id": func(o *ApprovalObject) { o.RequesterID = "x" }, "person": func(o *ApprovalObject) { o.Person = "x" }, "reason": func(o *ApprovalObject) { o.Reason = "x" },
		"reasons": func(o *ApprovalObject) { o.Reasons = []Reason{{"a", "b"}} }, "quorum": func(o *ApprovalObject) { o.Quorum = 2 }, "groups": func(o *ApprovalObject) { o.Groups = []string{"h"} }, "bundle": func(o *ApprovalObject) { o.Bundle.Digest = "d" },
		"sequence": func(o *ApprovalObject) { o.Bundle.Sequence = 1 }, "created": func(o *ApprovalObject) { o.CreatedAt = time.Unix(1, 0) }, "expires": func(o *ApprovalObject) { o.ExpiresAt = time.Unix(1, 0) },
	}
	for name, change := range changes {
		o := base
		change(&o)
		b, d, err := o.Marshal()
		if err != nil || d != DigestOf(DomainApproval, b) {
			t.Fatalf("%s: %v", name, err)
		}
		if other, ok := seen[d]; ok {
			t.Errorf("%q has the digest of %q", name, other)
		}
		seen[d] = name
		var back ApprovalObject
		if err := Decode(b, MaxDocument, &back); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
