package vaultplugin

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"maps"
	"reflect"
	"slices"

	"sealed.dev/sealed/internal/sealed"
)

// What a change widens is told as a list of fields, for a person to look at. A
// field stands for all that lies below it. What counts as wider is decided in
// one place for each noun; here it is only named.

// profileWidens names the fields of a profile that widen, for the names that
// profileDiff found: keys and "*".
func profileWidens(old, now sealed.Profile, names []string) []string {
	var out []string
	for _, name := range names {
		if name == "*" {
			out = append(out, ownWidens(old, now)...)
			continue
		}
		out = append(out, keyWidens(name, old.Keys[sealed.KeyName(name)], now.Keys[sealed.KeyName(name)])...)
	}
	return out
}

// ownWidens is for what binds all keys of a profile. A field is named when its
// change alone would widen.
func ownWidens(old, now sealed.Profile) []string {
	fields := []struct {
		name string
		copy func(to *sealed.Profile)
	}{
		{"allowed_workflows", func(to *sealed.Profile) { to.AllowedWorkflows = now.AllowedWorkflows }},
		{"owner", func(to *sealed.Profile) { to.Owner = now.Owner }},
		{"requesters", func(to *sealed.Profile) { to.Requesters = now.Requesters }},
		{"tags", func(to *sealed.Profile) { to.Tags = now.Tags }},
	}
	var out []string
	for _, f := range fields {
		mixed := old
		f.copy(&mixed)
		if widerProfile(old, mixed) {
			out = append(out, f.name)
		}
	}
	if len(out) == 0 {
		out = []string{"requesters", "allowed_workflows", "owner", "tags"}
	}
	return out
}

// keyWidens names the fields of one key. A key that is new, back after its end,
// or gone from where it stood before another is named as a whole.
func keyWidens(name string, was, now sealed.KeySpec) []string {
	key := "keys." + name
	if was.Tombstone || (was.Source == "") != (now.Source == "") || reflect.ValueOf(now).IsZero() {
		return []string{key}
	}
	fields := []struct {
		name string
		copy func(to *sealed.KeySpec)
	}{
		{"source", func(to *sealed.KeySpec) { to.Source = now.Source }},
		{"ref", func(to *sealed.KeySpec) { to.Ref = now.Ref }},
		{"agents", func(to *sealed.KeySpec) { to.Agents = now.Agents }},
		{"workflows", func(to *sealed.KeySpec) { to.Workflows = now.Workflows }},
		{"tags", func(to *sealed.KeySpec) { to.Tags = now.Tags }},
		{"isolations", func(to *sealed.KeySpec) { to.Isolations = now.Isolations }},
		{"requesters", func(to *sealed.KeySpec) { to.Requesters = now.Requesters }},
		{"risk", func(to *sealed.KeySpec) { to.Risk = now.Risk }},
		{"delivery", func(to *sealed.KeySpec) { to.Delivery = now.Delivery }},
		{"bindings", func(to *sealed.KeySpec) { to.Bindings = now.Bindings }},
		{"ttl", func(to *sealed.KeySpec) { to.TTL = now.TTL }},
		{"max_ttl", func(to *sealed.KeySpec) { to.MaxTTL = now.MaxTTL }},
		{"allow_weak", func(to *sealed.KeySpec) { to.AllowWeak = now.AllowWeak }},
	}
	var out []string
	for _, f := range fields {
		mixed := was
		f.copy(&mixed)
		if widerKey(was, mixed) {
			out = append(out, key+"."+f.name)
		}
	}
	if len(out) == 0 {
		return []string{key}
	}
	return out
}

// sourceWidens: where a source's login goes and what is read by it can't be
// compared, so every change of it counts; of levels those that are added. Of a
// source that was not there, all fields count.
func sourceWidens(old, now sealed.SourceConfig, existed bool) []string {
	if !existed {
		old = sealed.SourceConfig{Name: now.Name, Levels: []string{"none"}}
	}
	fields := []struct {
		name  string
		wider bool
	}{
		{"type", old.Type != now.Type}, {"address", old.Address != now.Address}, {"ca", old.CA != now.CA}, {"mount", old.Mount != now.Mount},
		{"namespace", old.Namespace != now.Namespace}, {"region", old.Region != now.Region}, {"auth", old.Auth != now.Auth},
		{"levels", slices.ContainsFunc(levels[:], func(l string) bool { return now.AllowsLevel(l) && !old.AllowsLevel(l) })},
	}
	var out []string
	for _, f := range fields {
		if f.wider {
			out = append(out, f.name)
		}
	}
	if len(out) == 0 && placeOf(old) != placeOf(now) {
		out = []string{"source"} // a field that is not listed here says where it is
	}
	return out
}

// keySetWidens names the policy keys that are new or others than before.
func keySetWidens(was, now map[string]string) []string {
	var out []string
	for _, id := range slices.Sorted(maps.Keys(now)) {
		if was[id] != now[id] {
			out = append(out, id)
		}
	}
	return out
}

// configWidens: whoever is a person, an agent, a requester's claims, or the
// program of a source, and how long a run may go on unseen.
func configWidens(old, now engineConfig) []string {
	added := func(was, now []string) bool {
		return slices.ContainsFunc(now, func(s string) bool { return !slices.Contains(was, s) })
	}
	helpers := false
	for typ, sum := range now.SourceHelpers {
		helpers = helpers || old.SourceHelpers[typ] != sum
	}
	fields := []struct {
		name  string
		wider bool
	}{
		{"second_person_off", now.SecondPersonOff && !old.SecondPersonOff},
		{"proposals_expire", now.proposalsLast() > old.proposalsLast()},
		{"agent_accessor", old.AgentAccessor != now.AgentAccessor},
		{"person_claim", old.PersonClaim != now.PersonClaim},
		// Fewer of them can undo a dispute over a claim.
		{"claims_accessor", added(old.ClaimsAccessor, now.ClaimsAccessor) || added(now.ClaimsAccessor, old.ClaimsAccessor)},
		{"source_helpers", helpers},
		{"sops_root", now.SOPSRoot != "" && old.SOPSRoot != now.SOPSRoot},
		{"detect", added(now.Detect, old.Detect)},
		{"freeze_after", now.FreezeAfter > old.FreezeAfter}, {"stop_after", now.StopAfter > old.StopAfter},
		{"silent_after", now.SilentAfter > old.SilentAfter}, {"unconfirmed_after", now.UnconfirmedAfter > old.UnconfirmedAfter},
	}
	var out []string
	for _, f := range fields {
		if f.wider {
			out = append(out, f.name)
		}
	}
	return out
}

// trustWidens names the authorities that a document adds, by digest, and the
// place it is refreshed from if that is another.
func trustWidens(domain string, old, now trustRow) ([]string, error) {
	var out []string
	if now.Endpoint != "" && now.Endpoint != old.Endpoint {
		out = append(out, "endpoint")
	}
	if now.Endpoint != "" && now.CA != old.CA {
		out = append(out, "ca")
	}
	if now.Document == old.Document {
		return out, nil
	}
	was, err := authorities(domain, old.Document)
	if err != nil {
		return nil, err
	}
	added, err := authorities(domain, now.Document)
	if err != nil {
		return nil, err
	}
	for _, a := range added {
		if !slices.Contains(was, a) {
			out = append(out, "bundle."+a)
		}
	}
	return out, nil
}

// authorities are the keys of a trust bundle, each by what it is and its digest.
func authorities(domain, document string) ([]string, error) {
	if document == "" {
		return nil, nil
	}
	bundle, err := parseTrustBundle(domain, document)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, ca := range bundle.X509Authorities() {
		sum := sha256.Sum256(ca.Raw)
		out = append(out, "x509-"+hex.EncodeToString(sum[:]))
	}
	for id, key := range bundle.JWTAuthorities() {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			return nil, invalid("bundle", "holds a JWT authority of an unknown kind")
		}
		sum := sha256.Sum256(append([]byte(id+"\x00"), der...))
		out = append(out, "jwt-"+hex.EncodeToString(sum[:]))
	}
	slices.Sort(out)
	return out, nil
}

// policyKeysText is the text of a set of keys; none is empty.
func policyKeysText(keys policyKeys) string {
	if keys.Version == 0 {
		return ""
	}
	return textOf(keys.Keys)
}
