package sandboxinit

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sealed.dev/sealed/internal/sealed"
)

// agentPath is the agent's PATH; the agent command `sealed` comes first so
// that nothing in the workspace can stand in for it.
const agentPath = "/run/sealed/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

const caFile = "/run/sealed/run/ca.pem"

// newPlaceholder makes what the agent holds instead of a value. It is random
// per run and key, and worth nothing outside this sandbox.
func newPlaceholder() (string, error) {
	b := make([]byte, 20)
	if _, err := rand.Read(b); err != nil {
		return "", fmt.Errorf("making placeholder: %w", err)
	}
	return "sealed-" + hex.EncodeToString(b), nil
}

// An environment is the agent's, built from scratch: fixed variables, the
// profile's knobs, placeholders, the agent definition's variables, values of
// env delivery, and last what init alone decides. Each name is there once: who
// reads a double one takes the first, or the last.
type environment struct {
	proxy        string // http://127.0.0.1:PORT
	token        string // for the agent command
	placeholders map[sealed.KeyName]string
	answer       sealed.ClaimAnswer
	term         bool
	values       []string // NAME=value of env delivery
}

func (e environment) build() []string {
	vars := map[string]string{"LANG": "C.UTF-8", "TERM": "dumb"}
	if e.term {
		vars["TERM"] = "xterm-256color"
	}
	maps.Copy(vars, e.answer.Env)
	for k, p := range e.placeholders {
		vars[string(k)] = p
	}
	for name, v := range e.answer.AgentEnv {
		vars[name] = e.expand(v)
	}
	for _, kv := range e.values {
		name, v, _ := strings.Cut(kv, "=")
		vars[name] = v
	}
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"} {
		vars[name] = e.proxy
	}
	for _, name := range []string{"SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO"} {
		vars[name] = caFile
	}
	vars["NO_PROXY"], vars["no_proxy"] = "127.0.0.1,localhost", "127.0.0.1,localhost"
	vars["PATH"], vars["HOME"], vars["TMPDIR"], vars["USER"] = agentPath, "/home/agent", "/tmp", "agent"
	vars["SEALED_API"], vars["SEALED_TOKEN"], vars["SEALED_RUN"] = e.proxy+"/sealed", e.token, string(e.answer.Run)
	var out []string
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		out = append(out, name+"="+vars[name])
	}
	return out
}

// expand fills in an agent definition's variable; see sealed.AgentDefinition.
func (e environment) expand(v string) string {
	v = strings.ReplaceAll(v, "{proxy}", e.proxy)
	v = strings.ReplaceAll(v, "{ca}", caFile)
	for k, p := range e.placeholders {
		v = strings.ReplaceAll(v, "{placeholder:"+string(k)+"}", p)
		v = strings.ReplaceAll(v, "{base:"+string(k)+"}", e.proxy+"/b/"+string(k))
	}
	return v
}
