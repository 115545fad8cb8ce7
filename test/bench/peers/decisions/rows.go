package main

import (
	"context"

	"github.com/cedar-policy/cedar-go/types"

	"sealed.dev/sealed/internal/sealed"
	opabundle "sealed.dev/sealed/opa-bundle"
	"sealed.dev/sealed/test/bench"
)

// A stored profile is what a request finds by its name.
type stored struct {
	profile sealed.InputProfile
	key     sealed.InputKey
}

// rows are one decision of each way, with so many profiles stored. Each step takes another profile.
func (e *engines) rows(ctx context.Context, n int) []*row {
	profiles, names := make(map[string]stored, n), make([]string, n)
	entities, uids := make(types.EntityMap, n), make([]types.EntityUID, n)
	for i := range n {
		in := bench.Question()
		in.Profile.Name = sealed.ProfileName(profileName(i))
		names[i], profiles[profileName(i)] = profileName(i), stored{in.Profile, in.Key}
		uid, entity := cedarKey(profileName(i), in)
		uids[i], entities[uid] = uid, entity
	}
	at := func(i int) int { return i * 7919 % n }
	asked := bench.Question()
	find := func(i int) *sealed.Input {
		p := profiles[names[at(i)]]
		asked.Profile, asked.Key = p.profile, p.key
		return asked
	}
	document, err := asMap(bench.Question())
	if err != nil {
		document = nil // no such thing: a row of it then fails
	}
	allow := sealed.EffectAllow
	rows := []*row{
		{who: ours, kind: "allow", want: allow, step: func(i int) sealed.Effect {
			in := find(i)
			return e.bundle.Decide(ctx, sealed.QuestionAuthz, in, in.Time).Effect
		}},
		{who: opaMap, kind: "allow", want: allow, step: func(i int) sealed.Effect {
			in := find(i)
			document["profile"].(map[string]any)["name"] = string(in.Profile.Name)
			return e.decidePlain(ctx, document)
		}},
		{who: "Cedar", kind: "allow", want: allow, step: func(i int) sealed.Effect { return decideCedar(e.cedar, entities, uids[at(i)], asked) }},
		{who: "plain Go", kind: "allow", want: allow, step: func(i int) sealed.Effect { return plainGo(find(i)).Effect }},
	}
	if n == 10 {
		for _, effect := range []sealed.Effect{sealed.EffectRequireApproval, sealed.EffectDeny} {
			rows = append(rows, e.effectRows(ctx, effect)...)
		}
	}
	for _, r := range rows {
		r.profiles = n
	}
	return rows
}

// effectRows are decisions that are no allow.
func (e *engines) effectRows(ctx context.Context, effect sealed.Effect) []*row {
	in := bench.Question()
	if effect == sealed.EffectDeny {
		in.Key.Agents, in.Run.Mode = []string{}, sealed.ModeIdentity
	} else {
		in.Key.Risk = sealed.RiskHigh
	}
	document, err := asMap(in)
	if err != nil {
		document = nil
	}
	uid, entity := cedarKey("k", in)
	entities := types.EntityMap{uid: entity}
	return []*row{
		{who: ours, kind: string(effect), want: effect, step: func(int) sealed.Effect { return e.bundle.Decide(ctx, sealed.QuestionAuthz, in, in.Time).Effect }},
		{who: opaMap, kind: string(effect), want: effect, step: func(int) sealed.Effect { return e.decidePlain(ctx, document) }},
		{who: "Cedar", kind: string(effect), want: effect, step: func(int) sealed.Effect { return decideCedar(e.cedar, entities, uid, in) }},
		{who: "plain Go", kind: string(effect), want: effect, step: func(int) sealed.Effect { return plainGo(in).Effect }},
	}
}

// keyRows decide all keys of a run.
func (e *engines) keyRows(ctx context.Context) []*row {
	const keys = 50
	in, uses := bench.Question(), bench.Uses(keys)
	documents := make([]map[string]any, keys)
	for i, u := range uses {
		one := bench.Question()
		one.Profile, one.Key = u.Profile, u.Key
		documents[i], _ = asMap(one)
	}
	distinct := make([]opabundle.Use, keys) // each of another kind: nothing is shared
	copy(distinct, uses)
	for i := range distinct {
		distinct[i].Key.TTL = int64(600 + i)
	}
	all := func(uses []opabundle.Use) func(int) sealed.Effect {
		return func(int) sealed.Effect { return e.bundle.DecideAll(ctx, *in, uses, in.Time)[0].Effect }
	}
	return []*row{
		{who: ours, kind: "50 keys of 8 kinds", profiles: 1, step: all(uses)},
		{who: opaMap, kind: "50 keys of 8 kinds", profiles: 1, step: func(int) (last sealed.Effect) {
			for _, d := range documents {
				last = e.decidePlain(ctx, d)
			}
			return last
		}},
		{who: ours, kind: "50 keys of 50 kinds", profiles: 1, step: all(distinct)},
	}
}
