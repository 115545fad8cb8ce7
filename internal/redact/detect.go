package redact

import (
	"bytes"
	"fmt"
	"regexp"
)

// Detector finds what looks like a credential or like personal data, without knowing it. It knows shapes and check digits, no names and no addresses,
// and asks nobody. Detectors are for [Deep] and off unless given: every one of them is wrong at times.
type Detector struct {
	name  string // in the mask
	shape *regexp.Regexp
	group int
	check func([]byte) bool
}

// Name returns the name of the detector, which takes the place of a key in masks and counts.
func (d Detector) Name() string { return d.name }

// Find returns the start and end of everything in p that has the shape and passes the check.
func (d Detector) Find(p []byte) [][2]int {
	var out [][2]int
	for _, m := range d.shape.FindAllSubmatchIndex(p, -1) {
		start, end := m[2*d.group], m[2*d.group+1]
		if start >= 0 && (d.check == nil || d.check(p[start:end])) {
			out = append(out, [2]int{start, end})
		}
	}
	return out
}

// Detectors returns those of the named kinds: "credentials" and "personal-data". An unknown kind is an error.
func Detectors(kinds ...string) ([]Detector, error) {
	var out []Detector
	for _, k := range kinds {
		switch k {
		case "credentials":
			out = append(out, Credentials()...)
		case "personal-data":
			out = append(out, PersonalData()...)
		default:
			return nil, fmt.Errorf("choosing detectors: there is no kind %q", k)
		}
	}
	return out, nil
}

// Credentials returns detectors of well-known kinds of credentials: by their public prefixes, lengths and check sums, and private keys by their armor.
func Credentials() []Detector {
	shape := func(name, expr string) Detector { return Detector{name: name, shape: regexp.MustCompile(expr)} }
	return []Detector{
		shape("private-key", `-----BEGIN [A-Z ]{0,24}PRIVATE KEY( BLOCK)?-----[\s\S]+?-----END [A-Z ]{0,24}PRIVATE KEY( BLOCK)?-----`),
		shape("github-token", `\b(?:gh[pousr]_[A-Za-z0-9]{36,251}|github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59})\b`),
		shape("gitlab-token", `\bgl(?:pat|ptt|dt|rt|cbt|ft|soat|agent)-[A-Za-z0-9_-]{20,64}\b`),
		shape("anthropic-key", `\bsk-ant-(?:api|admin)[0-9]{2}-[A-Za-z0-9_-]{80,120}\b`),
		shape("openai-key", `\bsk-(?:proj|svcacct|admin)-[A-Za-z0-9_-]{40,200}\b`),
		shape("aws-access-key", `\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b`),
		shape("google-api-key", `\bAIza[A-Za-z0-9_-]{35}\b`),
		shape("slack-token", `\bxox[abeoprs]-[A-Za-z0-9-]{20,200}\b`),
		shape("stripe-key", `\b[rs]k_(?:live|test)_[A-Za-z0-9]{20,200}\b`),
		shape("npm-token", `\bnpm_[A-Za-z0-9]{36}\b`),
		shape("pypi-token", `\bpypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{50,1000}\b`),
		shape("vault-token", `\bhv[sbr]\.[A-Za-z0-9_-]{24,300}\b`),
		shape("jwt", `\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}\b`),
		{name: "url-password", shape: regexp.MustCompile(`\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@"'<>]{1,64}:([^\s:/@"'<>\[\]]{6,128})@`), group: 1},
	}
}

// PersonalData returns detectors of structured personal data: payment cards (ISO/IEC 7812, Luhn), bank accounts (IBAN, ISO 13616, modulo 97), United States
// social security numbers in their usual spelling, and national provider identifiers (Luhn with the prefix 80840) after their name.
func PersonalData() []Detector {
	return []Detector{
		{name: "payment-card", shape: regexp.MustCompile(`(?:^|[^0-9A-Za-z.+_-])((?:[3-6][0-9]{3}|2[2-7][0-9]{2})(?:[ -]?[0-9]{4}){2}[ -]?[0-9]{1,7}|3[47][0-9]{2}[ -]?[0-9]{6}[ -]?[0-9]{5})\b`), group: 1, check: card},
		{name: "iban", shape: regexp.MustCompile(`\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b`), check: iban},
		{name: "us-ssn", shape: regexp.MustCompile(`(?:^|[^0-9A-Za-z-])([0-9]{3}-[0-9]{2}-[0-9]{4})(?:[^0-9A-Za-z-]|$)`), group: 1, check: ssn},
		{name: "us-npi", shape: regexp.MustCompile(`(?i)\bNPI\b[^0-9a-z]{0,8}([12][0-9]{9})\b`), group: 1, check: npi},
	}
}

// luhn checks the last digit (ISO/IEC 7812-1, annex B). Other bytes than digits are passed over.
func luhn(text []byte) bool {
	sum, n := 0, 0
	for i := len(text) - 1; i >= 0; i-- {
		if text[i] < '0' || text[i] > '9' {
			continue
		}
		d := int(text[i] - '0')
		if n%2 == 1 {
			if d *= 2; d > 9 {
				d -= 9
			}
		}
		sum, n = sum+d, n+1
	}
	return n > 1 && sum%10 == 0
}

func digitsOf(text []byte) []byte {
	return bytes.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, text)
}

func card(text []byte) bool {
	d := digitsOf(text)
	return len(d) >= 13 && len(d) <= 19 && luhn(d) && len(bytes.Trim(d, string(d[:1]))) > 0
}

func npi(text []byte) bool { return luhn(append([]byte("80840"), text...)) }

// ssn refuses what the Social Security Administration never gave out: area 000, 666 and from 900 on, group 00, serial 0000.
func ssn(text []byte) bool {
	area, group, serial := string(text[:3]), string(text[4:6]), string(text[7:])
	return area != "000" && area != "666" && area[0] != '9' && group != "00" && serial != "0000"
}

// iban checks that the number, with letters as 10 to 35 and its first four characters at the end, is 1 modulo 97.
func iban(text []byte) bool {
	t := bytes.ReplaceAll(text, []byte(" "), nil)
	if len(t) < 15 || len(t) > 34 {
		return false
	}
	rest := 0
	for _, c := range append(bytes.Clone(t[4:]), t[:4]...) {
		switch {
		case c >= '0' && c <= '9':
			rest = (rest*10 + int(c-'0')) % 97
		default:
			rest = (rest*100 + int(c-'A') + 10) % 97
		}
	}
	return rest == 1
}
