package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sealed.dev/sealed/internal/install"
	"sealed.dev/sealed/internal/vaultclient"
)

// doctorReads bounds how many policies, groups, persons and roles doctor reads.
const doctorReads = 500

// authLists names, by kind of auth method, the list of those who may log in
// and get policies by it.
var authLists = map[string]string{
	"userpass": "users", "ldap": "groups", "okta": "groups", "approle": "role", "jwt": "role", "oidc": "role",
	"kubernetes": "role", "cert": "certs", "aws": "roles", "azure": "role", "gcp": "role",
}

// A census counts who holds a policy that reaches the engine, or is above it.
type census struct {
	c       *vaultclient.Client
	left    int                 // reads
	holders map[string][]string // by policy

	people  map[string]string   // names by entity id
	members map[string][]string // entity ids by holder, for groups
	whose   map[string]string   // entity ids by holder, for persons and their logins
}

// checkHolders lists who holds what: every policy that reaches the mount or all
// of Vault, with the groups, persons and login roles that have it. A token that
// may not look is told so; that is the usual case and no fault.
func checkHolders(ctx context.Context, e *vaultclient.Engine) []check {
	const name = "who holds what"
	s := census{c: e.Client(), left: doctorReads, holders: map[string][]string{}, people: map[string]string{}, members: map[string][]string{}, whose: map[string]string{}}
	if err := s.policies(ctx, e.Mount()); err != nil {
		return []check{bad(checkSkip, name, "ask with the token of who administers Vault", "this token may not read Vault's policies")}
	}
	var missed []string
	for _, look := range []struct {
		what string
		at   func(context.Context) error
	}{{"groups", s.groups}, {"persons", s.persons}, {"login roles", s.logins}} {
		if err := look.at(ctx); err != nil {
			missed = append(missed, look.what)
		}
	}
	var out []check
	for _, policy := range slices.Sorted(maps.Keys(s.holders)) {
		held := "nobody by name"
		if len(s.holders[policy]) > 0 {
			held = join(s.holders[policy])
		}
		out = append(out, ok(name, "%s: %s", policy, held))
	}
	out = append(out, s.together(e.Mount())...)
	if len(missed) > 0 {
		out = append(out, bad(checkSkip, name, "ask with the token of who administers Vault", "this token may not read %s", join(missed)))
	}
	if s.left <= 0 {
		out = append(out, bad(checkWarn, name, "look at the rest in Vault", "there are more than %d to read: the list is not complete", doctorReads))
	}
	return out
}

// policies finds those that name the mount, or all paths. root always does.
func (s *census) policies(ctx context.Context, mount string) error {
	names, err := s.c.List(ctx, "sys/policies/acl")
	if err != nil {
		return err
	}
	s.holders["root"] = nil
	for _, name := range names {
		p, err := s.read(ctx, "sys/policies/acl/"+name)
		if err != nil {
			return err
		}
		text, _ := p["policy"].(string)
		for _, path := range []string{
			mount + "/", "sys/raw", "sys/policies", "sys/plugins", "sys/*", "identity/entity/name", "identity/entity/*", `identity/entity"`,
			"identity/entity-alias", "identity/group", "identity/*", "+/", "*",
		} {
			if strings.Contains(text, `path "`+path) {
				s.holders[name] = nil
			}
		}
	}
	return nil
}

// read reads one document while there is budget; without, it reads nothing.
func (s *census) read(ctx context.Context, path string) (map[string]any, error) {
	if s.left--; s.left < 0 {
		return nil, nil
	}
	return s.c.Read(ctx, path, nil)
}

// hold notes a holder of the policies in a document's fields.
func (s *census) hold(who string, doc map[string]any, fields ...string) {
	for _, field := range fields {
		list, _ := doc[field].([]any)
		for _, p := range list {
			name := fmt.Sprint(p)
			if have, counts := s.holders[name]; counts && !slices.Contains(have, who) {
				s.holders[name] = append(have, who)
			}
		}
	}
}

// each reads every document of a list.
func (s *census) each(ctx context.Context, list, one string, f func(name string, doc map[string]any)) error {
	names, err := s.c.List(ctx, list)
	if err != nil {
		return err
	}
	for _, name := range names {
		doc, err := s.read(ctx, one+name)
		if err != nil {
			return err
		}
		f(name, doc)
	}
	return nil
}

func (s *census) groups(ctx context.Context) error {
	return s.each(ctx, "identity/group/name", "identity/group/name/", func(name string, doc map[string]any) {
		members, _ := doc["member_entity_ids"].([]any)
		who := fmt.Sprintf("group %s (%s)", name, describe(len(members), "person"))
		for _, id := range members {
			s.members[who] = append(s.members[who], fmt.Sprint(id))
		}
		s.hold(who, doc, "policies")
	})
}

func (s *census) persons(ctx context.Context) error {
	return s.each(ctx, "identity/entity/name", "identity/entity/name/", func(name string, doc map[string]any) {
		id := fmt.Sprint(doc["id"])
		s.people[id], s.whose["person "+name] = name, id
		aliases, _ := doc["aliases"].([]any)
		for _, a := range aliases {
			alias, _ := a.(map[string]any)
			kind, _ := alias["mount_type"].(string)
			s.whose[fmt.Sprintf("%v%s/%v", alias["mount_path"], authLists[kind], alias["name"])] = id
		}
		s.hold("person "+name, doc, "policies")
	})
}

// reaching are roles that together reach a value where no second person is asked:
// who says where it may go, or who is an agent, and who starts the run.
var reaching = [][2]string{{"sealed-profiles", "sealed-operator"}, {"sealed-root", "sealed-operator"}}

// together names the persons who hold two roles that reach a value together,
// whether by a login, by their entity or by a group.
func (s *census) together(mount string) []check {
	holds := map[string][]string{} // policies by entity id
	for policy, holders := range s.holders {
		for _, who := range holders {
			for _, id := range append(slices.Clone(s.members[who]), s.whose[who]) {
				holds[id] = append(holds[id], policy)
			}
		}
	}
	delete(holds, "")
	var out []check
	for _, id := range slices.Sorted(maps.Keys(holds)) {
		for _, pair := range reaching {
			a, b := install.PolicyName(mount, pair[0]), install.PolicyName(mount, pair[1])
			if slices.Contains(holds[id], a) && slices.Contains(holds[id], b) {
				name := s.people[id]
				if name == "" {
					name = id
				}
				out = append(out, bad(checkWarn, "who holds what", "give the roles to different people", "person %s holds %s and %s: together they reach a value unless a second person says no", name, a, b))
			}
		}
	}
	return out
}

func (s *census) logins(ctx context.Context) error {
	mounts, err := s.c.Read(ctx, "sys/auth", nil)
	if err != nil {
		return err
	}
	for _, mount := range slices.Sorted(maps.Keys(mounts)) {
		m, _ := mounts[mount].(map[string]any)
		kind, _ := m["type"].(string)
		list, known := authLists[kind]
		if !known {
			continue
		}
		path := "auth/" + mount + list
		err := s.each(ctx, path, path+"/", func(name string, doc map[string]any) {
			s.hold(path+"/"+name, doc, "token_policies", "policies")
		})
		if err != nil {
			return err
		}
	}
	return nil
}
