package sandboxinit

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sealed.dev/sealed/internal/sealed"
)

// An identity is what the Workload API gave this attested process.
type identity struct {
	svid *x509svid.SVID
	jwt  string // bearer; exchanged once for a Vault token, then dropped
}

// fetchIdentity asks the Workload API behind an inherited O_PATH descriptor.
// The connection is made by this process, so the attestor sees this process;
// the socket itself is not mounted in the sandbox.
func fetchIdentity(ctx context.Context, socket, audience string) (*identity, error) {
	ctx, cancel := context.WithTimeout(ctx, 8*time.Second)
	defer cancel()
	client, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+socket))
	if err != nil {
		return nil, fmt.Errorf("connecting to the SPIFFE Workload API: %w", sealed.ErrUnavailable)
	}
	defer func() { _ = client.Close() }()
	svid, err := fetchSVID(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("fetching X509-SVID (is this sandbox attested?): %w", err)
	}
	jwt, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience, Subject: svid.ID})
	if err != nil {
		return nil, fmt.Errorf("fetching JWT-SVID: %w", err)
	}
	return &identity{svid: svid, jwt: jwt.Marshal()}, nil
}

// entryWait is how long a refusal is asked again: a SPIRE agent that has just
// started learns of its entries after it has opened its socket.
const entryWait = 4 * time.Second

func fetchSVID(ctx context.Context, client *workloadapi.Client) (*x509svid.SVID, error) {
	deadline := time.Now().Add(entryWait)
	for {
		svid, err := client.FetchX509SVID(ctx)
		if status.Code(err) != codes.PermissionDenied || time.Now().After(deadline) || !pause(ctx, 500*time.Millisecond) {
			return svid, err
		}
	}
}

// chain returns the certificates, leaf first, DER in base64.
func (id *identity) chain() []string {
	var out []string
	for _, c := range id.svid.Certificates {
		out = append(out, base64.StdEncoding.EncodeToString(c.Raw))
	}
	return out
}

// sign signs payload in a domain with the SVID key: ASN.1 ECDSA over SHA-256.
func (id *identity) sign(d sealed.Domain, payload []byte) (string, error) {
	key, ok := id.svid.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return "", fmt.Errorf("signing claim: the SVID key is not ECDSA: %w", sealed.ErrInvalid)
	}
	sum := sha256.Sum256(sealed.SigningBytes(d, payload))
	sig, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("signing claim: %w", err)
	}
	return base64.StdEncoding.EncodeToString(sig), nil
}
