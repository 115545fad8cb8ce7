package authority

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	// securityHeader must be present in every call (SPIFFE Workload Endpoint
	// §5.2.1): a browser or proxy that is tricked into calling has no such key.
	securityHeader = "workload.spiffe.io"
	// maxMessage bounds a request; the largest honest one is a JWT-SVID.
	maxMessage   = 64 << 10
	maxAudiences = 16
	maxAudience  = 1 << 10 // bytes of one audience
)

// Serve answers the Workload API on a Unix listener until ctx ends, and closes
// the listener. It returns nil if ctx ended it.
func (a *Authority) Serve(ctx context.Context, l net.Listener) error {
	srv := grpc.NewServer(
		grpc.Creds(peerCredentials{}),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := hasSecurityHeader(ctx); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := hasSecurityHeader(ss.Context()); err != nil {
				return err
			}
			return next(srv, ss)
		}),
	)
	workload.RegisterSpiffeWorkloadAPIServer(srv, &workloadServer{authority: a})
	stop := context.AfterFunc(ctx, srv.Stop)
	defer stop()
	if err := srv.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serving workload API: %w", err)
	}
	return nil
}

func hasSecurityHeader(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get(securityHeader); len(v) != 1 || v[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	return nil
}

// workloadServer is the wire side of Authority.
type workloadServer struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	authority *Authority
}

// caller attests the peer of a call.
func (s *workloadServer) caller(ctx context.Context) ([]Entry, *peerProcess, error) {
	p, _ := peer.FromContext(ctx)
	if p == nil {
		return nil, nil, status.Error(codes.PermissionDenied, errNoIdentity.Error())
	}
	proc, ok := p.AuthInfo.(*peerProcess)
	if !ok {
		return nil, nil, status.Error(codes.PermissionDenied, errNoIdentity.Error())
	}
	entries, err := s.authority.identities(ctx, proc)
	if err != nil {
		return nil, nil, status.Error(codes.PermissionDenied, err.Error())
	}
	return entries, proc, nil
}

// FetchX509SVID sends SVIDs, and new ones at half of their life for as long as
// the very process that was attested lives and holds the call.
func (s *workloadServer) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	entries, proc, err := s.caller(stream.Context())
	if err != nil {
		return err
	}
	for {
		resp, err := s.x509Response(entries)
		if err != nil {
			return status.Error(codes.Internal, "issuing failed")
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-time.After(x509TTL / 2):
		}
		if !proc.alive() {
			return status.Error(codes.PermissionDenied, errNoIdentity.Error())
		}
	}
}

func (s *workloadServer) x509Response(entries []Entry) (*workload.X509SVIDResponse, error) {
	a := s.authority
	resp := &workload.X509SVIDResponse{}
	for _, e := range entries {
		svid, err := a.ca.issueX509(e, a.clock())
		if err != nil {
			return nil, err
		}
		resp.Svids = append(resp.Svids, &workload.X509SVID{
			SpiffeId: e.ID.String(), X509Svid: svid.chain, X509SvidKey: svid.key, Bundle: a.ca.cert.Raw,
		})
	}
	return resp, nil
}

// FetchX509Bundles sends the bundle once: it does not change while we run.
func (s *workloadServer) FetchX509Bundles(_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	if _, _, err := s.caller(stream.Context()); err != nil {
		return err
	}
	a := s.authority
	resp := &workload.X509BundlesResponse{Bundles: map[string][]byte{a.td.IDString(): a.ca.cert.Raw}}
	if err := stream.Send(resp); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// FetchJWTSVID signs one JWT-SVID per identity, or for the one asked for.
func (s *workloadServer) FetchJWTSVID(ctx context.Context, req *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	if err := checkAudience(req.Audience); err != nil {
		return nil, err
	}
	entries, _, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	a := s.authority
	resp := &workload.JWTSVIDResponse{}
	for _, e := range entries {
		id := e.ID
		if req.SpiffeId != "" && req.SpiffeId != id.String() {
			continue
		}
		token, err := a.ca.issueJWT(id, req.Audience, a.clock())
		if err != nil {
			return nil, status.Error(codes.Internal, "issuing failed")
		}
		resp.Svids = append(resp.Svids, &workload.JWTSVID{SpiffeId: id.String(), Svid: token})
	}
	if len(resp.Svids) == 0 {
		return nil, status.Error(codes.PermissionDenied, errNoIdentity.Error())
	}
	return resp, nil
}

func checkAudience(audience []string) error {
	if len(audience) == 0 || len(audience) > maxAudiences {
		return status.Errorf(codes.InvalidArgument, "wants 1 to %d audiences", maxAudiences)
	}
	for _, a := range audience {
		if a == "" || len(a) > maxAudience {
			return status.Error(codes.InvalidArgument, "an audience is empty or too long")
		}
	}
	return nil
}

// FetchJWTBundles sends the JWT keys once.
func (s *workloadServer) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	if _, _, err := s.caller(stream.Context()); err != nil {
		return err
	}
	a := s.authority
	keys, err := a.bundle.JWTBundle().Marshal()
	if err != nil {
		return status.Error(codes.Internal, "encoding bundle failed")
	}
	if err := stream.Send(&workload.JWTBundlesResponse{Bundles: map[string][]byte{a.td.IDString(): keys}}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// ValidateJWTSVID checks a token of this trust domain for one audience.
func (s *workloadServer) ValidateJWTSVID(ctx context.Context, req *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	if err := checkAudience([]string{req.Audience}); err != nil {
		return nil, err
	}
	if _, _, err := s.caller(ctx); err != nil {
		return nil, err
	}
	svid, err := s.authority.validateJWT(req.Svid, req.Audience)
	if err != nil { // the library's text could quote the token
		return nil, status.Error(codes.InvalidArgument, "invalid JWT-SVID")
	}
	claims, err := structpb.NewStruct(svid.Claims)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "invalid JWT-SVID")
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: svid.ID.String(), Claims: claims}, nil
}

// validateJWT adds the injected clock's view of exp to the library's, which
// uses the machine's.
func (a *Authority) validateJWT(token, audience string) (*jwtsvid.SVID, error) {
	svid, err := jwtsvid.ParseAndValidate(token, a.bundle, []string{audience})
	if err != nil {
		return nil, err
	}
	if !a.clock().Before(svid.Expiry) {
		return nil, errors.New("expired")
	}
	return svid, nil
}
