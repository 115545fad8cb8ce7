package sealed

import (
	"errors"
	"testing"
)

// goodSources has one valid configuration of each type and login.
func goodSources() map[string]SourceConfig {
	const org = "f4e44a7f-1190-432a-9d4a-af96013127cb"
	vault := SourceConfig{Name: "a", Type: SourceVaultKV, Address: "https://v:8200", Mount: "team/kv", Namespace: "ns"}
	approle, jwt, web := vault, vault, SourceConfig{Name: "a", Type: SourceAWS, Address: "https://sm.example", Region: "eu-central-1", Mount: "prod/"}
	approle.Auth = SourceAuth{Method: AuthAppRole, Mount: "team/approle", Role: "id"}
	jwt.Auth = SourceAuth{Method: AuthJWT, Role: "sealed"}
	static := web
	web.Auth = SourceAuth{Method: AuthWebIdentity, Role: "arn:aws:iam::123456789012:role/team/sealed", Address: "https://sts.example"}
	return map[string]SourceConfig{
		"vault": vault, "approle": approle, "jwt": jwt, "aws": static, "web identity": web,
		"1password": {Name: "a", Type: SourceOnePassword, Address: "https://connect:8443", Mount: "CI prod"},
		"bitwarden": {Name: "a", Type: SourceBitwarden, Address: "https://bw.example/api", Mount: org, Auth: SourceAuth{Address: "https://bw.example/identity"}},
		"sops":      {Name: "a", Type: SourceSOPS, Mount: "team/ci"},
	}
}

func TestSourceTypes(t *testing.T) {
	for name, s := range goodSources() {
		if err := s.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if dynamic := s.Type == SourceVaultDynamic; s.Revocable() != dynamic || s.Renewable() != dynamic || (s.Kind() == "dynamic") != dynamic {
			t.Errorf("%s: traits", name)
		}
	}
	for _, tt := range []struct {
		of, field string
		change    func(*SourceConfig)
	}{
		{"vault", "address", func(s *SourceConfig) { s.Address = "https://u:p@v" }},
		{"vault", "address", func(s *SourceConfig) { s.Address = "https://v/x" }},
		{"vault", "address", func(s *SourceConfig) { s.Address = "https://v?x" }},
		{"vault", "address", func(s *SourceConfig) { s.Address = "https://v#" }},
		{"vault", "mount", func(s *SourceConfig) { s.Mount = "/kv" }},
		{"vault", "namespace", func(s *SourceConfig) { s.Namespace = "a//b" }},
		{"vault", "region", func(s *SourceConfig) { s.Region = "eu-central-1" }},
		{"vault", "auth.method", func(s *SourceConfig) { s.Auth.Method = AuthStatic }},
		{"vault", "auth.role", func(s *SourceConfig) { s.Auth.Role = "x" }},
		{"vault", "auth.address", func(s *SourceConfig) { s.Auth.Address = "https://elsewhere" }},
		{"approle", "auth.role", func(s *SourceConfig) { s.Auth.Role = "" }},
		{"approle", "auth.mount", func(s *SourceConfig) { s.Auth.Mount = "../sys" }},
		{"aws", "region", func(s *SourceConfig) { s.Region = "" }},
		{"aws", "region", func(s *SourceConfig) { s.Region = "eu-central-1.evil" }},
		{"aws", "mount", func(s *SourceConfig) { s.Mount = "arn:aws:x" }},
		{"aws", "namespace", func(s *SourceConfig) { s.Namespace = "ns" }},
		{"aws", "auth.mount", func(s *SourceConfig) { s.Auth.Mount = "x" }},
		{"aws", "auth.method", func(s *SourceConfig) { s.Auth.Method = AuthToken }},
		{"web identity", "auth.role", func(s *SourceConfig) { s.Auth.Role = "sealed" }},
		{"web identity", "auth.address", func(s *SourceConfig) { s.Auth.Address = "http://sts.example" }},
		{"1password", "mount", func(s *SourceConfig) { s.Mount = `a" or name eq "b` }},
		{"1password", "auth.method", func(s *SourceConfig) { s.Auth.Method = AuthToken }},
		{"bitwarden", "mount", func(s *SourceConfig) { s.Mount = "org" }},
		{"bitwarden", "auth.address", func(s *SourceConfig) { s.Auth.Address = "" }},
		{"bitwarden", "address", func(s *SourceConfig) { s.Address = "https://bw.example/../x" }},
		{"sops", "address", func(s *SourceConfig) { s.Address = "https://x" }},
		{"sops", "mount", func(s *SourceConfig) { s.Mount = "/etc" }},
		{"sops", "mount", func(s *SourceConfig) { s.Mount = "a/../../etc" }},
		{"sops", "ca", func(s *SourceConfig) { s.CA = "x" }},
	} {
		s := goodSources()[tt.of]
		tt.change(&s)
		var fe *FieldError
		if err := s.Validate(); !errors.As(err, &fe) || fe.Field != tt.field {
			t.Errorf("%s %+v: %v, want field %s", tt.of, s, err, tt.field)
		}
	}
}
