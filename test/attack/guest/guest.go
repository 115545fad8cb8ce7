// Package guest is a sealed-init made by hand, for attacks on a real engine.
//
// The real init says only what is true, so it can't lie to the engine. A guest
// can: it holds run keys and a Vault token of its own and signs whatever a
// test asks for. Its identity is real, too: the administrator of the stack's
// SPIRE server mints it. An administrator of SPIRE is outside of what Sealed
// defends against (SECURITY.md); a test uses that power to start where an
// attacker would be who has got past the attestor.
package guest

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"sealed.dev/sealed/internal/devstack"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/vaultclient"
)

// Names of the isolation grades in an X509-SVID.
const (
	OwnUID  = "own-uid.isolation.sealed.internal"
	SameUID = "same-uid.isolation.sealed.internal"
)

// A Forge mints identities of one stack and makes guests of them. It is safe
// for concurrent use.
type Forge struct {
	Trust  sealed.TrustFile
	socket string // the admin API of the SPIRE server
}

// Open makes the forge of a running stack with SPIRE.
func Open(ctx context.Context, s *devstack.Stack) (*Forge, error) {
	st := s.Status(ctx)
	raw, err := os.ReadFile(st.TrustFile)
	if err != nil {
		return nil, fmt.Errorf("opening forge: %w", err)
	}
	trust, err := sealed.ParseTrustFile(raw)
	if err != nil {
		return nil, fmt.Errorf("opening forge: %w", err)
	}
	return &Forge{Trust: trust, socket: filepath.Join(st.Dir, "private", "spire", "server.sock")}, nil
}

// ID is the SPIFFE ID of an agent of the stack's tenant.
func (f *Forge) ID(agent sealed.Name) string {
	return "spiffe://" + f.Trust.TrustDomain + sealed.AgentSPIFFEPath(f.Trust.Tenant, agent)
}

func (f *Forge) client() (svidv1.SVIDClient, func(), error) {
	conn, err := grpc.NewClient("unix:"+f.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, fmt.Errorf("dialing SPIRE: %w", err)
	}
	return svidv1.NewSVIDClient(conn), func() { _ = conn.Close() }, nil
}

// An SVID is an X509-SVID with its key.
type SVID struct {
	Chain []string // DER, base64
	Key   *ecdsa.PrivateKey
}

// X509 mints an X509-SVID. dns names are put into it as they are.
func (f *Forge) X509(ctx context.Context, id string, dns ...string) (SVID, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return SVID{}, fmt.Errorf("minting X509-SVID: %w", err)
	}
	u, err := url.Parse(id)
	if err != nil {
		return SVID{}, fmt.Errorf("minting X509-SVID: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{u}, DNSNames: dns}, key)
	if err != nil {
		return SVID{}, fmt.Errorf("minting X509-SVID: %w", err)
	}
	c, done, err := f.client()
	if err != nil {
		return SVID{}, err
	}
	defer done()
	resp, err := c.MintX509SVID(ctx, &svidv1.MintX509SVIDRequest{Csr: csr})
	if err != nil {
		return SVID{}, fmt.Errorf("minting X509-SVID: %w", err)
	}
	out := SVID{Key: key}
	for _, der := range resp.Svid.CertChain {
		out.Chain = append(out.Chain, base64.StdEncoding.EncodeToString(der))
	}
	return out, nil
}

// JWT mints a JWT-SVID.
func (f *Forge) JWT(ctx context.Context, id string, audience ...string) (string, error) {
	c, done, err := f.client()
	if err != nil {
		return "", err
	}
	defer done()
	path := strings.TrimPrefix(id, "spiffe://"+f.Trust.TrustDomain)
	resp, err := c.MintJWTSVID(ctx, &svidv1.MintJWTSVIDRequest{
		Id: &types.SPIFFEID{TrustDomain: f.Trust.TrustDomain, Path: path}, Audience: audience,
	})
	if err != nil {
		return "", fmt.Errorf("minting JWT-SVID: %w", err)
	}
	return resp.Svid.Token, nil
}

// Login exchanges a JWT-SVID for a client with a Vault token, as init does.
func (f *Forge) Login(ctx context.Context, jwt string) (*vaultclient.Client, vaultclient.Login, error) {
	c, err := vaultclient.New(f.Trust.VaultAddr, []byte(f.Trust.VaultCA), "")
	if err != nil {
		return nil, vaultclient.Login{}, err
	}
	l, err := c.Login(ctx, "auth/"+f.Trust.AuthMount+"/login", map[string]any{"role": f.Trust.AuthRole, "jwt": jwt})
	if err != nil {
		return nil, l, err
	}
	c, err = c.WithToken(string(l.Token))
	return c, l, err
}

// A Guest is a hand-made init. Its fields may be changed to make it lie.
type Guest struct {
	Run    sealed.RunID
	Client *vaultclient.Client // with the token of the run
	Login  vaultclient.Login
	SVID   SVID
	Key    ed25519.PrivateKey
	HPKE   *secret.PrivateKey
	Answer sealed.ClaimAnswer

	trust sealed.TrustFile
}

// Arrive makes a guest for a run of an agent that has logged in but claimed
// nothing yet.
func (f *Forge) Arrive(ctx context.Context, run sealed.RunID, agent sealed.Name) (*Guest, error) {
	id := f.ID(agent)
	jwt, err := f.JWT(ctx, id, f.Trust.Audience)
	if err != nil {
		return nil, err
	}
	c, login, err := f.Login(ctx, jwt)
	if err != nil {
		return nil, err
	}
	svid, err := f.X509(ctx, id, OwnUID)
	if err != nil {
		return nil, err
	}
	return f.Stranger(run, c, login, svid)
}

// Stranger makes a guest of what an attacker has got hold of, with run keys of
// its own.
func (f *Forge) Stranger(run sealed.RunID, c *vaultclient.Client, login vaultclient.Login, svid SVID) (*Guest, error) {
	g := &Guest{Run: run, Client: c, Login: login, SVID: svid, trust: f.Trust}
	var err error
	if _, g.Key, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return nil, fmt.Errorf("making run key: %w", err)
	}
	g.HPKE, err = secret.GenerateKey()
	return g, err
}

// PublicKey is the run key as a claim names it.
func (g *Guest) PublicKey() string {
	return base64.StdEncoding.EncodeToString(g.Key.Public().(ed25519.PublicKey))
}

// Measure is what an honest init would have measured for a request.
func Measure(r sealed.EnqueueRequest) sealed.Measurement {
	return sealed.Measurement{
		InitVersion: "guest", ExeDigest: strings.Repeat("ab", 32), CommandDigest: r.CommandDigest, InputDigest: r.InputDigest,
		WorkspaceDigest: r.WorkspaceDigest, TrustDigest: sealed.DigestOf(sealed.DomainTrust, nil), Backend: r.Sandbox.Backend,
		PID: 1, UID: 700000, UIDMap: "700000 0 1", Interfaces: []string{"lo"}, CapEff: "0000000000000000", CapBnd: "0000000000000000",
		NoNewPrivs: true, Seccomp: 2, RootReadOnly: true, Writable: []string{"/workspace"}, Interactive: r.Sandbox.Interactive,
	}
}

// Claim claims the run. change, which may be nil, spoils the claim before it
// is signed.
func (g *Guest) Claim(ctx context.Context, ticket string, m sealed.Measurement, change func(*sealed.Claim)) error {
	nonce := make([]byte, 32)
	if _, err := rand.Read(nonce); err != nil {
		return fmt.Errorf("making nonce: %w", err)
	}
	c := sealed.Claim{
		Run: g.Run, Ticket: ticket, RunKey: g.PublicKey(),
		HPKEKey: g.HPKE.Public(), Nonce: base64.StdEncoding.EncodeToString(nonce), Measurement: m,
	}
	if change != nil {
		change(&c)
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encoding claim: %w", err)
	}
	msg := sealed.SigningBytes(sealed.DomainClaim, payload)
	sum := sha256.Sum256(msg)
	sig, err := ecdsa.SignASN1(rand.Reader, g.SVID.Key, sum[:])
	if err != nil {
		return fmt.Errorf("signing claim: %w", err)
	}
	doc, err := json.Marshal(sealed.ClaimRequest{
		Payload: string(payload), SVID: g.SVID.Chain, SVIDSignature: base64.StdEncoding.EncodeToString(sig),
		RunSignature: base64.StdEncoding.EncodeToString(ed25519.Sign(g.Key, msg)),
	})
	if err != nil {
		return fmt.Errorf("encoding claim: %w", err)
	}
	reply, err := g.put(ctx, g.Path("claim"), map[string]any{"claim": string(doc)})
	if err != nil {
		return err
	}
	return g.open(reply, &g.Answer)
}

// Path is a path of the run, below the mount.
func (g *Guest) Path(rest string) string { return "runs/" + string(g.Run) + "/" + rest }

// Call signs doc with the run key, sends it to a path below the mount, and
// opens the answer into out unless that is nil.
func (g *Guest) Call(ctx context.Context, path string, doc, out any) (lease string, err error) {
	signed, err := sealed.Sign(sealed.DomainRequest, doc, g.Key)
	if err != nil {
		return "", err
	}
	return g.Send(ctx, path, signed, out)
}

// Send sends a document that was signed already, perhaps by somebody else.
func (g *Guest) Send(ctx context.Context, path string, signed sealed.Signed, out any) (lease string, err error) {
	b, err := json.Marshal(signed)
	if err != nil {
		return "", fmt.Errorf("encoding request: %w", err)
	}
	var reply map[string]any
	if isRead(path) {
		reply, err = g.Client.Sys(ctx, http.MethodGet, g.trust.VaultMount+"/"+path+"?"+url.Values{"request": {string(b)}}.Encode(), nil)
	} else {
		reply, err = g.put(ctx, path, map[string]any{"request": string(b)})
	}
	if err != nil {
		return "", err
	}
	lease, _ = reply["lease_id"].(string)
	if out == nil {
		return lease, nil
	}
	return lease, g.open(reply, out)
}

// isRead tells the paths of a run that are read, with the request in the query.
func isRead(path string) bool {
	return strings.Contains(path, "/creds/") || strings.HasSuffix(path, "/watch")
}

func (g *Guest) put(ctx context.Context, path string, body map[string]any) (map[string]any, error) {
	return g.Client.Sys(ctx, http.MethodPut, g.trust.VaultMount+"/"+path, body)
}

func (g *Guest) open(reply map[string]any, v any) error {
	data, _ := reply["data"].(map[string]any)
	text, _ := data["answer"].(string)
	var signed sealed.Signed
	if err := sealed.Decode([]byte(text), sealed.MaxDocument, &signed); err != nil {
		return err
	}
	key, err := g.trust.AnswerPublicKey()
	if err != nil {
		return err
	}
	return signed.Open(sealed.DomainAnswer, key, v)
}

// A Grant is an issued credential with its lease.
type Grant struct {
	sealed.CredsAnswer
	Lease string
}

// Creds asks for a credential. The same idem resumes the same grant.
func (g *Guest) Creds(ctx context.Context, key sealed.KeyName, idem string) (Grant, error) {
	var out Grant
	path := g.Path("creds/" + string(key))
	lease, err := g.Call(ctx, path, sealed.CredsRequest{Run: g.Run, Path: path, Idempotency: idem, Delivery: sealed.DeliveryProxy}, &out.CredsAnswer)
	out.Lease = lease
	return out, err
}

// Confirm names the lease of a grant.
func (g *Guest) Confirm(ctx context.Context, gr Grant) error {
	path := g.Path("confirm")
	_, err := g.Call(ctx, path, sealed.ConfirmRequest{Run: g.Run, Path: path, Grant: gr.Grant, LeaseID: gr.Lease, Epoch: gr.Epoch}, &sealed.ConfirmAnswer{})
	return err
}

// Watch asks for orders.
func (g *Guest) Watch(ctx context.Context, epoch uint64, wait time.Duration) (sealed.WatchAnswer, error) {
	var out sealed.WatchAnswer
	path := g.Path("watch")
	_, err := g.Call(ctx, path, sealed.WatchRequest{Run: g.Run, Path: path, Epoch: epoch, Wait: sealed.Duration(wait)}, &out)
	return out, err
}

// Reveal opens the ciphertext of a grant with this guest's key.
func (g *Guest) Reveal(gr Grant) (string, error) {
	v, err := g.HPKE.Open(secret.Context{Run: string(gr.Run), Grant: string(gr.CredsAnswer.Grant), Key: string(gr.Key)}, gr.Ciphertext)
	if err != nil {
		return "", err
	}
	var out string
	err = v.Reveal(func(b []byte) error { out = string(b); return nil })
	return out, err
}
