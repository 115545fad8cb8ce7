package opabundle

import (
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/sealed"
)

// oneByOne is what DecideAll stands for.
func oneByOne(b *Bundle, shared sealed.Input, uses []Use, at time.Time) []sealed.Decision {
	out := []sealed.Decision{}
	for _, u := range uses {
		shared.Profile, shared.Key = u.Profile, u.Key
		out = append(out, b.Decide(context.Background(), sealed.QuestionAuthz, shared, at))
	}
	return out
}

// byName answers each key by its name, in every way a policy can fail.
const byName = `decision := {"effect": "allow", "reasons": [], "obligations": {}} if input.key.name == "GOOD"
decision := {"effect": "allow", "obligations": {"nothing": 1}} if input.key.name == "SHAPE"
decision := {"effect": "allow", "reasons": [], "obligations": {}} if { input.key.name == "ERROR"; not to_number(input.tenant) > 1 }
decision := {"effect": "allow", "obligations": {"ttl": [1, 2][_]}} if input.key.name == "CONFLICT"
`

func TestDecideAllEqualsDecide(t *testing.T) {
	bundles := map[string]*Bundle{
		"default":     open(t, buildDefault(t), patient),
		"by name":     openPolicies(t, byName, patient),
		"whole input": openPolicies(t, `decision := {"effect": "allow", "reasons": [{"code": "input", "msg": json.marshal(input)}], "obligations": {}}`+"\n", patient),
		"undefined":   openPolicies(t, `decision := {} if input.nothing`+"\n", patient),
	}
	for name, b := range bundles {
		t.Run(name, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(7, 8))
			names := []sealed.KeyName{"GOOD", "SHAPE", "ERROR", "CONFLICT", "UNDEFINED", "A\xff"}
			for range 100 {
				var uses []Use
				for range rnd.IntN(8) {
					in := randomInput(rnd)
					in.Key.Name = names[rnd.IntN(len(names))]
					uses = append(uses, Use{in.Profile, in.Key})
				}
				shared := *randomInput(rnd)
				got := b.DecideAll(context.Background(), shared, uses, now)
				if diff := cmp.Diff(oneByOne(b, shared, uses, now), got); diff != "" {
					t.Fatalf("%+v, %+v (-one by one +at once):\n%s", shared, uses, diff)
				}
			}
		})
	}
}

// None infects another: each failure denies its own key, with its reason.
func TestDecideAllFailsAlone(t *testing.T) {
	b := openPolicies(t, byName, patient)
	in := *fullInput()
	want := map[sealed.KeyName]string{"SHAPE": sealed.ReasonShape, "ERROR": sealed.ReasonError, "CONFLICT": sealed.ReasonError, "UNDEFINED": sealed.ReasonUndefined, "A\xff": sealed.ReasonError}
	names := []sealed.KeyName{"GOOD", "SHAPE", "GOOD", "ERROR", "GOOD", "CONFLICT", "UNDEFINED", "A\xff", "GOOD"}
	var uses []Use
	for _, n := range names {
		in.Key.Name = n
		uses = append(uses, Use{in.Profile, in.Key})
	}
	for i, d := range b.DecideAll(context.Background(), in, uses, now) {
		code, bad := want[names[i]]
		switch {
		case !bad && d.Effect != sealed.EffectAllow:
			t.Errorf("%s: got %+v, want allow", names[i], d)
		case bad && (d.Effect != sealed.EffectDeny || d.Reasons[0].Code != code):
			t.Errorf("%s: got %+v, want deny %s", names[i], d, code)
		}
	}
}

func TestDecideAllArguments(t *testing.T) {
	b := openPolicies(t, allowRule, patient)
	ctx := context.Background()
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	in := *fullInput()
	uses := []Use{{in.Profile, in.Key}, {in.Profile, in.Key}}
	bad := in
	bad.Requester.Name = "a\xff"
	large := in
	large.Reason = strings.Repeat("x", 1<<20)
	var none *Bundle
	for name, tc := range map[string]struct {
		got  []sealed.Decision
		want string
	}{
		"no bundle":     {none.DecideAll(ctx, in, uses, now), sealed.ReasonNoBundle},
		"expired":       {b.DecideAll(ctx, in, uses, b.Expires()), sealed.ReasonExpired},
		"no time":       {b.DecideAll(ctx, in, uses, time.Time{}), sealed.ReasonError},
		"canceled":      {b.DecideAll(canceled, in, uses, now), sealed.ReasonTimeout},
		"shared part":   {b.DecideAll(ctx, bad, uses, now), sealed.ReasonError},
		"shared, large": {b.DecideAll(ctx, large, uses, now), sealed.ReasonError},
	} {
		if len(tc.got) != len(uses) {
			t.Errorf("%s: %d answers", name, len(tc.got))
		}
		for _, d := range tc.got {
			if d.Effect != sealed.EffectDeny || len(d.Reasons) != 1 || d.Reasons[0].Code != tc.want {
				t.Errorf("%s: got %+v, want deny %s", name, d, tc.want)
			}
		}
	}
	if got := b.DecideAll(ctx, in, nil, now); len(got) != 0 {
		t.Errorf("no uses: %v", got)
	}
}

// Every field of a use counts when it is read, and only then.
func TestSameUse(t *testing.T) {
	base := func() *Use { in := fullInput(); return &Use{in.Profile, in.Key} }
	if !allFields.same(base(), base()) {
		t.Error("a use differs from itself")
	}
	for f, path := range fieldPath {
		object, name, _ := strings.Cut(path, ".")
		for i, at := range []string{"profile", "key"} {
			if object != at {
				continue
			}
			for change := range 4 {
				u := base()
				v := fieldByName(t, reflect.ValueOf(u).Elem().Field(i), name)
				if !alter(v, change) {
					continue
				}
				only := fields(field(f))
				if allFields.same(base(), u) || only.same(base(), u) || only.same(u, base()) {
					t.Errorf("%s, change %d: not noticed", path, change)
				}
				if !(allFields &^ only).same(base(), u) {
					t.Errorf("%s, change %d: noticed though not read", path, change)
				}
			}
		}
	}
	for i := range 5 { // inside a binding
		u := base()
		alter(reflect.ValueOf(&u.Key.Bindings[0]).Elem().Field(i), 0)
		if allFields.same(base(), u) {
			t.Errorf("binding field %d: not noticed", i)
		}
	}
}

func fieldByName(t *testing.T, v reflect.Value, name string) reflect.Value {
	t.Helper()
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("json") == name {
			return v.Field(i)
		}
	}
	t.Fatalf("no field %s", name)
	return reflect.Value{}
}

// alter changes a value in the nth way that its kind has.
func alter(v reflect.Value, nth int) bool {
	switch v.Kind() {
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Int, reflect.Int64:
		v.SetInt(v.Int() + 1)
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Slice:
		switch nth {
		case 0:
			v.Set(reflect.AppendSlice(reflect.MakeSlice(v.Type(), 0, 2), v))
			v.Set(reflect.Append(v, reflect.New(v.Type().Elem()).Elem()))
		case 1:
			v.Set(reflect.MakeSlice(v.Type(), 0, 0))
		case 2:
			v.Set(reflect.Zero(v.Type())) // nil
		default:
			return false
		}
		return true
	default:
		panic(fmt.Sprint("unknown kind ", v.Kind()))
	}
	return nth == 0
}
