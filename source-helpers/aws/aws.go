// Package aws is the source of static values in AWS Secrets Manager, through
// AWS's SDK for Go.
//
// # References
//
// A reference is the name of a secret, after the source's prefix, with
// "?stage=AWSPREVIOUS" for a stage other than AWSCURRENT. A version is pinned by
// its id, in the reference's version or as "?version=ID". Its field is a key of the JSON object that the secret holds, or
// empty for the whole secret, text or binary.
//
// The credential is {"access_key_id": …, "secret_access_key": …,
// "session_token": …} or, with the method web_identity, a JWT that AWS STS takes
// for the role; whoever issues the JWT has to write a new one before it ends.
// The identity needs secretsmanager:GetSecretValue on the secrets, and
// secretsmanager:DescribeSecret to tell the newest version and for a health
// check that tells more.
//
// # Guarantee
//
// Nothing of the SDK's chain of defaults is used: no environment, no files, no
// instance metadata, no retries, no endpoints but the configured ones. Calls are
// bounded as package source says. The name and the version that come back must
// be those that were asked for, and no text of AWS reaches an error.
//
// # What it does not guarantee
//
// A value that was read can't be un-issued here. The SDK keeps the access key in
// strings, which are not wiped.
package aws

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source"
)

// nameRE is what AWS allows in a name; an ARN, which could name another
// account, has colons.
var (
	nameRE    = regexp.MustCompile(`^[A-Za-z0-9/_+=.@-]{1,512}$`)
	stageRE   = regexp.MustCompile(`^[A-Za-z0-9_+=.@-]{1,256}$`)
	versionRE = regexp.MustCompile(`^[A-Za-z0-9-]{32,64}$`)
)

// A Source reads the secrets of one region. It is safe for concurrent use.
type Source struct {
	source.Static
	client *secretsmanager.Client
	prefix string
}

// Open makes a source and takes ownership of credential. It makes no call. The
// error matches sealed.ErrInvalid.
func Open(cfg sealed.SourceConfig, credential *secret.Value) (*Source, error) {
	conf, err := configure(cfg, credential)
	if err != nil {
		return nil, fmt.Errorf("opening source %s: %w", cfg.Name, err)
	}
	return &Source{client: secretsmanager.NewFromConfig(conf), prefix: cfg.Mount}, nil
}

// configure builds a configuration by hand, so that nothing else has a say.
func configure(cfg sealed.SourceConfig, credential *secret.Value) (aws.Config, error) {
	conf := aws.Config{Region: cfg.Region, BaseEndpoint: &cfg.Address, Retryer: func() aws.Retryer { return aws.NopRetryer{} }}
	var err error
	if conf.HTTPClient, err = client(cfg.CA, "application/x-amz-json-1.1"); err != nil {
		return conf, err
	}
	if cfg.Auth.Method != sealed.AuthWebIdentity {
		conf.Credentials, err = static(credential)
		return conf, err
	}
	login := aws.Config{Region: cfg.Region, BaseEndpoint: &cfg.Auth.Address, Retryer: conf.Retryer, Credentials: aws.AnonymousCredentials{}}
	if login.HTTPClient, err = client(cfg.CA, "text/xml"); err != nil {
		return conf, err
	}
	if err := source.CheckToken(credential, "a JWT"); err != nil {
		return conf, err
	}
	conf.Credentials = aws.NewCredentialsCache(webIdentity{client: sts.NewFromConfig(login), role: cfg.Auth.Role, jwt: credential})
	return conf, nil
}

// static reads an access key.
func static(credential *secret.Value) (aws.CredentialsProvider, error) {
	var key struct {
		ID      string `json:"access_key_id"`
		Secret  string `json:"secret_access_key"`
		Session string `json:"session_token"`
	}
	err := credential.Reveal(func(b []byte) error {
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.DisallowUnknownFields()
		if dec.Decode(&key) != nil || dec.More() || key.ID == "" || key.Secret == "" {
			return &sealed.FieldError{Field: "credential", Reason: "wants a JSON object with access_key_id, secret_access_key and perhaps session_token"}
		}
		return nil
	})
	credential.Destroy()
	return credentials.NewStaticCredentialsProvider(key.ID, key.Secret, key.Session), err
}

// A webIdentity logs in with a JWT. The SDK's own provider panics, in a
// goroutine where nobody can recover, when STS answers without credentials.
type webIdentity struct {
	client *sts.Client
	role   string
	jwt    *secret.Value
}

// Retrieve implements aws.CredentialsProvider.
func (w webIdentity) Retrieve(ctx context.Context) (aws.Credentials, error) {
	in := &sts.AssumeRoleWithWebIdentityInput{RoleArn: &w.role, RoleSessionName: aws.String("sealed")}
	if err := w.jwt.Reveal(func(b []byte) error { in.WebIdentityToken = aws.String(string(b)); return nil }); err != nil {
		return aws.Credentials{}, err
	}
	out, err := w.client.AssumeRoleWithWebIdentity(ctx, in)
	if err != nil {
		return aws.Credentials{}, err
	}
	c := out.Credentials
	if c == nil || aws.ToString(c.AccessKeyId) == "" || aws.ToString(c.SecretAccessKey) == "" || aws.ToString(c.SessionToken) == "" || c.Expiration == nil {
		return aws.Credentials{}, fmt.Errorf("logging in to the source: the answer has no key: %w", sealed.ErrUnavailable)
	}
	return aws.Credentials{
		AccessKeyID: *c.AccessKeyId, SecretAccessKey: *c.SecretAccessKey, SessionToken: *c.SessionToken, CanExpire: true, Expires: *c.Expiration,
	}, nil
}

// Mint reads one version of a secret. The error matches sealed.ErrInvalid for
// a reference that can't be one, else sealed.ErrUnavailable, and
// sealed.ErrNotFound too when the secret or its version is not there.
func (s *Source) Mint(ctx context.Context, ref sealed.KeyRef, _ string) (source.Minted, error) {
	in, err := s.input(ref)
	if err != nil {
		return source.Minted{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, source.Timeout)
	defer cancel()
	out, err := s.client.GetSecretValue(ctx, in)
	if err != nil {
		return source.Minted{}, fmt.Errorf("reading secret: %w", kindOf(err))
	}
	defer clear(out.SecretBinary)
	version := sealed.SourceVersion(aws.ToString(out.VersionId))
	switch {
	case aws.ToString(out.Name) != *in.SecretId, version.Validate("version") != nil,
		in.VersionId != nil && aws.ToString(out.VersionId) != *in.VersionId,
		in.VersionStage != nil && !slices.Contains(out.VersionStages, *in.VersionStage):
		return source.Minted{}, fmt.Errorf("reading secret: the answer is about another one: %w", sealed.ErrUnavailable)
	case ref.Field != "":
		value, err := field(aws.ToString(out.SecretString), ref.Field)
		return source.Minted{Value: value, Version: version}, err
	case out.SecretString != nil && *out.SecretString != "":
		return source.Minted{Value: secret.New([]byte(*out.SecretString)), Version: version}, nil
	case len(out.SecretBinary) > 0:
		return source.Minted{Value: secret.New(bytes.Clone(out.SecretBinary)), Version: version}, nil
	}
	return source.Minted{}, fmt.Errorf("reading secret: empty: %w", sealed.ErrUnavailable)
}

func (s *Source) input(ref sealed.KeyRef) (*secretsmanager.GetSecretValueInput, error) {
	name, params, err := source.SplitRef(ref.Path, "stage", "version")
	if err != nil {
		return nil, err
	}
	if !nameRE.MatchString(s.prefix + name) {
		return nil, &sealed.FieldError{Field: "ref.path", Reason: "wants the name of a secret"}
	}
	in := &secretsmanager.GetSecretValueInput{SecretId: aws.String(s.prefix + name)}
	stage, version := params["stage"], params["version"]
	switch pinned := string(ref.Version); {
	case pinned != "" && (!versionRE.MatchString(pinned) || (version != "" && version != pinned)):
		return nil, &sealed.FieldError{Field: "ref.version", Reason: "wants the id of a version, and the same as in the path"}
	case pinned != "":
		in.VersionId = &pinned
	case params == nil:
		in.VersionStage = aws.String("AWSCURRENT")
	case stage != "" && version == "" && stageRE.MatchString(stage):
		in.VersionStage = &stage
	case version != "" && stage == "" && versionRE.MatchString(version):
		in.VersionId = &version
	default:
		return nil, &sealed.FieldError{Field: "ref.path", Reason: "wants either stage or version"}
	}
	return in, nil
}

// Newest is the id of the version that ref means now: of its stage, or the
// pinned one while it has a stage. It reads no value. The error is as of Mint.
func (s *Source) Newest(ctx context.Context, ref sealed.KeyRef) (sealed.SourceVersion, error) {
	in, err := s.input(ref)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, source.Timeout)
	defer cancel()
	out, err := s.client.DescribeSecret(ctx, &secretsmanager.DescribeSecretInput{SecretId: in.SecretId})
	if err != nil {
		return "", fmt.Errorf("reading versions: %w", kindOf(err))
	}
	if aws.ToString(out.Name) != *in.SecretId {
		return "", fmt.Errorf("reading versions: the answer is about another one: %w", sealed.ErrUnavailable)
	}
	for id, stages := range out.VersionIdsToStages {
		if id == aws.ToString(in.VersionId) || (in.VersionStage != nil && slices.Contains(stages, *in.VersionStage)) {
			version := sealed.SourceVersion(id)
			if version.Validate("version") != nil {
				return "", fmt.Errorf("reading versions: malformed: %w", sealed.ErrUnavailable)
			}
			return version, nil
		}
	}
	return "", fmt.Errorf("reading versions: no such version: %w: %w", sealed.ErrNotFound, sealed.ErrUnavailable)
}

// field picks a key of a secret that holds a JSON object.
func field(text, name string) (*secret.Value, error) {
	var data map[string]json.RawMessage
	if json.Unmarshal([]byte(text), &data) != nil {
		return nil, fmt.Errorf("picking field %s: the secret is no JSON object: %w", name, sealed.ErrUnavailable)
	}
	defer source.Wipe(data)
	return source.StringField(data, name)
}

// Check reports whether AWS accepts the login. It asks about a secret that need
// not exist, and reads no value: that the secret is not there, or that the
// login may not describe it, is an answer to a valid signature.
func (s *Source) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, source.Timeout)
	defer cancel()
	_, err := s.client.DescribeSecret(ctx, &secretsmanager.DescribeSecretInput{SecretId: aws.String(s.prefix + "sealed-health-check")})
	var api smithy.APIError
	if err == nil || (errors.As(err, &api) && slices.Contains([]string{"ResourceNotFoundException", "AccessDeniedException"}, api.ErrorCode())) {
		return nil
	}
	return fmt.Errorf("checking login: %w", kindOf(err))
}

// kindOf turns an error of the SDK, whose text quotes AWS, into one of ours.
func kindOf(err error) error {
	var api smithy.APIError
	var answered *awshttp.ResponseError
	switch {
	case errors.As(err, &api) && api.ErrorCode() == "ResourceNotFoundException":
		return fmt.Errorf("%w: %w", sealed.ErrNotFound, sealed.ErrUnavailable)
	case errors.As(err, &answered) && answered.HTTPStatusCode() != http.StatusOK:
		return &source.StatusError{Code: answered.HTTPStatusCode()}
	case errors.As(err, &answered):
		return fmt.Errorf("reading the source's answer: malformed: %w", sealed.ErrUnavailable)
	}
	return fmt.Errorf("calling the source: %s: %w", source.TransportCause(err), sealed.ErrUnavailable)
}
