// Command init stands in for sealed-init in this package's tests: process 1 of
// a sandbox that waits for a byte, asks the Workload API for its identity, and
// prints it as JSON.
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	addr := workloadapi.WithAddr("unix:///proc/self/fd/6")
	x509, err := workloadapi.FetchX509SVID(ctx, addr)
	if err != nil {
		log.Fatal(err)
	}
	jwt, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "vault://sealed"}, addr)
	if err != nil {
		log.Fatal(err)
	}
	err = json.NewEncoder(os.Stdout).Encode(map[string]any{
		"id": x509.ID.String(), "dns": x509.Certificates[0].DNSNames, "jwt": jwt.Marshal(),
	})
	if err != nil {
		log.Fatal(err)
	}
}
