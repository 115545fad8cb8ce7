// Command spire-attestor-sealed is Sealed's workload attestor for the SPIRE
// agent, which starts it:
//
//	WorkloadAttestor "sealed" {
//	    plugin_cmd      = "/usr/libexec/sealed/spire-attestor-sealed"
//	    plugin_checksum = "<sha256>"
//	    plugin_data { … }
//	}
//
// plugin_data is described at spireattestor.ParseConfig.
package main

import (
	"os"
	"strings"

	"github.com/spiffe/spire-plugin-sdk/pluginmain"
	workloadattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/workloadattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"

	spireattestor "sealed.dev/sealed/spire-attestor"
)

func main() {
	plugin := new(spireattestor.Plugin)
	server := workloadattestorv1.WorkloadAttestorPluginServer(plugin)
	scrub(server.Type())
	pluginmain.Serve(server, configv1.ConfigServiceServer(plugin))
}

// scrub removes what the SPIRE agent happened to inherit: proxies, library
// knobs, tokens. Kept are go-plugin's own variables (PLUGIN_*) and its
// handshake cookie, which is named after the plugin's type.
func scrub(cookie string) {
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if name != cookie && !strings.HasPrefix(name, "PLUGIN_") {
			_ = os.Unsetenv(name)
		}
	}
}
