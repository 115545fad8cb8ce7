package proxy

import (
	"path"
	"slices"
	"strings"
)

// A mintRule names requests that create credentials which outlive the run, or
// hand the account to somebody else. They are refused whatever the binding
// says: a narrow-looking binding such as /repos/acme/api/** includes some (R14).
type mintRule struct {
	host    string   // exact, or "*" for every host
	methods []string // empty: any
	path    string   // path.Match pattern; a final /** matches everything below and itself
}

var writes = []string{"POST", "PUT", "PATCH"}

// mintRules were taken from the providers' public API references.
var mintRules = []mintRule{
	{"api.github.com", writes, "/repos/*/*/keys/**"}, // deploy keys
	{"api.github.com", writes, "/user/keys/**"},
	{"api.github.com", writes, "/user/gpg_keys/**"},
	{"api.github.com", writes, "/user/ssh_signing_keys/**"},
	{"api.github.com", writes, "/repos/*/*/hooks/**"},
	{"api.github.com", writes, "/orgs/*/hooks/**"},
	{"api.github.com", writes, "/repos/*/*/collaborators/**"},
	{"api.github.com", writes, "/repos/*/*/actions/secrets/**"},
	{"api.github.com", writes, "/orgs/*/actions/secrets/**"},
	{"api.github.com", writes, "/repos/*/*/actions/runners/**"},
	{"api.github.com", writes, "/orgs/*/actions/runners/**"},
	{"api.github.com", nil, "/app/installations/*/access_tokens"},
	{"api.github.com", nil, "/applications/**"},
	{"api.github.com", nil, "/authorizations/**"},
	{"gitlab.com", writes, "/api/v4/personal_access_tokens/**"},
	{"gitlab.com", writes, "/api/v4/user/keys/**"},
	{"gitlab.com", writes, "/api/v4/projects/*/deploy_keys/**"},
	{"gitlab.com", writes, "/api/v4/projects/*/access_tokens/**"},
	{"gitlab.com", writes, "/api/v4/projects/*/hooks/**"},
	{"api.anthropic.com", nil, "/v1/organizations/**"},
	{"api.openai.com", nil, "/v1/organization/**"},
	{"iam.amazonaws.com", nil, "/**"},
	{"sts.amazonaws.com", nil, "/**"},
	{"*", writes, "/oauth/token"},
	{"*", writes, "/oauth2/token"},
	{"*", writes, "/oauth/access_token"},
	{"*", writes, "/login/oauth/access_token"},
}

// mints reports whether a request, with its canonical path, creates
// credentials. Case is folded: some origins do.
func mints(host, method, p string) bool {
	p = strings.ToLower(strings.TrimSuffix(p, "/"))
	return slices.ContainsFunc(mintRules, func(r mintRule) bool {
		return (r.host == "*" || r.host == host) && (len(r.methods) == 0 || slices.Contains(r.methods, method)) && below(r.path, p)
	})
}

func below(pattern, p string) bool {
	base, deep := strings.CutSuffix(pattern, "/**")
	if deep {
		n := strings.Count(base, "/")
		segs := strings.Split(p, "/")
		if len(segs) < n+1 {
			return false
		}
		p = strings.Join(segs[:n+1], "/")
	}
	ok, err := path.Match(base, p)
	return err == nil && ok
}
