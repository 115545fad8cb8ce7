// Package cluster runs Sealed on three Vault servers with raft storage, each in a
// container on a network of its own, and takes the leader away: by SIGKILL, and by
// cutting its network. It also restores a snapshot of Vault below the engine.
//
// # Idea
//
// The stack of package harness is brought up as ever, with one Vault on the host.
// Then a snapshot of that Vault is restored into a new cluster, and a balancer
// takes over its address: whoever knew the one Vault, the trust file of sealed-init
// above all, now speaks to the cluster. So a run here is a run as everywhere else,
// with real SPIRE, a real sandbox and the real sealed-init.
//
// The image is made on the spot from the Vault that was built for the tests, the
// libraries it is linked to, and the engine as it is built from this tree. Nothing
// is pulled.
//
// This is a module of its own, so that a container client is no requirement of
// Sealed's. It needs root, and a Docker daemon that DOCKER_HOST names; without one
// it is skipped, or fails where SEALED_REQUIRE names docker.
//
// # What it does not guarantee
//
// Three containers on one kernel share its clock and its disk. A cut network here
// is an interface that is gone, not one that loses every third packet.
package cluster

import (
	"os"
	"path/filepath"
	"testing"

	"sealed.dev/sealed/test/harness"
)

func TestMain(m *testing.M) {
	// The harness builds from the module that it finds here or above.
	if err := os.Chdir(filepath.Join("..", "..")); err != nil {
		panic(err)
	}
	harness.Main(m, harness.Options{})
}
