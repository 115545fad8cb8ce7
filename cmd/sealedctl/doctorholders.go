package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

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
}

// checkHolders lists who holds what: every policy that reaches the mount or all
// of Vault, with the groups, persons and login roles that have it. A token that
// may not look is told so; that is the usual case and no fault.
func checkHolders(ctx context.Context, e *vaultclient.Engine) []check {
	const name = "who holds what"
	s := census{c: e.Client(), left: doctorReads, holders: map[string][]string{}}
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
		s.hold(fmt.Sprintf("group %s (%s)", name, describe(len(members), "person")), doc, "policies")
	})
}

func (s *census) persons(ctx context.Context) error {
	return s.each(ctx, "identity/entity/name", "identity/entity/name/", func(name string, doc map[string]any) {
		s.hold("person "+name, doc, "policies")
	})
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
