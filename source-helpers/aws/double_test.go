package aws_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	accessKey = "AKIDEXAMPLE"
	secretKey = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
	region    = "eu-central-1"
	roleARN   = "arn:aws:iam::123456789012:role/sealed"
	jwt       = "header.claims.signature"
)

// A version is one version of a secret, with its stages.
type version struct {
	id     string
	stages []string
	text   string
	binary []byte
}

// A double is AWS Secrets Manager and STS in one server. It is a double: it
// speaks the wire protocol (AWS JSON 1.1, AWS Query), models stages and
// versions, and checks Signature Version 4 by itself, as the AWS General
// Reference describes it.
type double struct {
	secrets map[string][]version
	session string // the session token that is wanted, if any
	lie     func(map[string]any)

	mu      sync.Mutex
	logins  int
	refused []string
}

func (d *double) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		d.sts(w, string(body))
		return
	}
	fail := func(code int, typ string) {
		d.mu.Lock()
		d.refused = append(d.refused, typ)
		d.mu.Unlock()
		d.send(w, code, map[string]any{"__type": typ, "message": "canary of the double"})
	}
	if why := d.verify(r, body); why != "" {
		fail(http.StatusBadRequest, why)
		return
	}
	var in struct{ SecretId, VersionId, VersionStage string }
	if json.Unmarshal(body, &in) != nil || r.Method != http.MethodPost || r.URL.Path != "/" || r.Header.Get("Content-Type") != "application/x-amz-json-1.1" {
		fail(http.StatusBadRequest, "SerializationException")
		return
	}
	versions, ok := d.secrets[in.SecretId]
	switch target := r.Header.Get("X-Amz-Target"); {
	case !ok:
		fail(http.StatusBadRequest, "ResourceNotFoundException")
	case target == "secretsmanager.DescribeSecret":
		stages := map[string][]string{}
		for _, v := range versions {
			stages[v.id] = v.stages
		}
		d.send(w, http.StatusOK, map[string]any{"Name": in.SecretId, "VersionIdsToStages": stages})
	case target == "secretsmanager.GetSecretValue":
		for _, v := range versions {
			if (in.VersionId != "" && v.id != in.VersionId) || (in.VersionStage != "" && !slices.Contains(v.stages, in.VersionStage)) {
				continue
			}
			out := map[string]any{"ARN": "arn:aws:secretsmanager:x", "Name": in.SecretId, "VersionId": v.id, "VersionStages": v.stages, "CreatedDate": 1.7e9}
			if v.binary != nil {
				out["SecretBinary"] = v.binary
			} else {
				out["SecretString"] = v.text
			}
			if d.lie != nil {
				d.lie(out)
			}
			d.send(w, http.StatusOK, out)
			return
		}
		fail(http.StatusBadRequest, "ResourceNotFoundException")
	default:
		fail(http.StatusBadRequest, "UnknownOperationException")
	}
}

func (d *double) send(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}

// sts answers AssumeRoleWithWebIdentity.
func (d *double) sts(w http.ResponseWriter, body string) {
	w.Header().Set("Content-Type", "text/xml")
	for _, want := range []string{"Action=AssumeRoleWithWebIdentity", "Version=2011-06-15", "RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fsealed", "RoleSessionName=sealed", "WebIdentityToken=" + jwt} {
		if !strings.Contains(body, want) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Code>InvalidIdentityToken</Code><Message>canary of the double</Message></Error></ErrorResponse>`)
			return
		}
	}
	d.mu.Lock()
	d.logins++
	d.mu.Unlock()
	_, _ = fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>%s</AccessKeyId><SecretAccessKey>%s</SecretAccessKey><SessionToken>%s</SessionToken><Expiration>%s</Expiration></Credentials><AssumedRoleUser><Arn>a</Arn><AssumedRoleId>b</AssumedRoleId></AssumedRoleUser></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`,
		accessKey, secretKey, d.session, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
}

// verify checks Signature Version 4 and names AWS's error, or "".
func (d *double) verify(r *http.Request, body []byte) string {
	rest, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		return "MissingAuthenticationTokenException"
	}
	parts := map[string]string{}
	for p := range strings.SplitSeq(rest, ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
		parts[k] = v
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || time.Since(at).Abs() > 5*time.Minute {
		return "InvalidSignatureException"
	}
	day := at.Format("20060102")
	scope := day + "/" + region + "/secretsmanager/aws4_request"
	if parts["Credential"] != accessKey+"/"+scope || r.Header.Get("X-Amz-Security-Token") != d.session {
		return "UnrecognizedClientException"
	}
	signed := strings.Split(parts["SignedHeaders"], ";")
	wanted := []string{"host", "x-amz-date", "x-amz-target", "content-type"}
	if d.session != "" {
		wanted = append(wanted, "x-amz-security-token")
	}
	for _, name := range wanted {
		if !slices.Contains(signed, name) {
			return "IncompleteSignatureException"
		}
	}
	var headers strings.Builder
	for _, name := range signed {
		value := r.Header.Get(name)
		switch name {
		case "host":
			value = r.Host
		case "content-length":
			value = fmt.Sprint(len(body))
		}
		headers.WriteString(name + ":" + strings.Join(strings.Fields(value), " ") + "\n")
	}
	sum := func(b []byte) string { h := sha256.Sum256(b); return hex.EncodeToString(h[:]) }
	canonical := strings.Join([]string{r.Method, r.URL.EscapedPath(), r.URL.RawQuery, headers.String(), parts["SignedHeaders"], sum(body)}, "\n")
	mac := func(key []byte, text string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	key := mac(mac(mac(mac([]byte("AWS4"+secretKey), day), region), "secretsmanager"), "aws4_request")
	want := hex.EncodeToString(mac(key, "AWS4-HMAC-SHA256\n"+r.Header.Get("X-Amz-Date")+"\n"+scope+"\n"+sum([]byte(canonical))))
	if !hmac.Equal([]byte(want), []byte(parts["Signature"])) {
		return "InvalidSignatureException"
	}
	return ""
}
