package sealed

// Descriptors that sealed-init inherits from the launcher. Every other
// descriptor above 2 is closed before anything else happens.
const (
	RelayFD  = 3 // socket pair to the host relay (yamux)
	BootFD   = 4 // pipe: one Boot document, then end of file
	TrustFD  = 5 // the trust file, opened read-only
	SPIFFEFD = 6 // O_PATH of the Workload API socket
)

// A Boot document goes from the launcher to sealed-init over BootFD. Nothing
// in it is trusted: the engine's signed answer decides, and the command must
// have the digest it names.
type Boot struct {
	Run    RunID    `json:"run"`
	Ticket string   `json:"ticket"`
	Mode   string   `json:"mode"`
	Argv   []string `json:"argv"`
	Dir    string   `json:"dir"`             // working directory in the sandbox
	Input  []byte   `json:"input,omitempty"` // standard input of the agent
	// HasInput distinguishes empty input from none.
	HasInput    bool `json:"has_input,omitempty"`
	Interactive bool `json:"interactive,omitempty"` // PTY; standard input is live
	// OneOutput gives the agent one stream for standard output and error: both
	// are shown in one place, and so are redacted as one, in the order in which
	// they are read.
	OneOutput bool `json:"one_output,omitempty"`
	Rows      int  `json:"rows,omitempty"`
	Cols      int  `json:"cols,omitempty"`
}

// MaxBoot bounds a Boot document, in bytes.
const MaxBoot = 8 << 20

// A RelayHeader opens each stream on the relay: one line of JSON. Kind is
// "vault" (the Vault of the trust file), "dial" (Addr, host:port), or
// "control" (see RelayControl).
type RelayHeader struct {
	Kind string `json:"kind"`
	Addr string `json:"addr,omitempty"`
}

// RelayStatus answers a header: one line of JSON. Empty Error means that
// bytes follow.
type RelayStatus struct {
	Error string `json:"error,omitempty"`
}

// A RelayControl line travels on the control stream, in both directions, one
// JSON object each: from init "claimed" and "finished" (with Exit and the
// digests of its streams), from the host "resize" and "signal", and both ways
// what package relay says about the watch of a host.
type RelayControl struct {
	Type    string            `json:"type"`
	Rows    int               `json:"rows,omitempty"`
	Cols    int               `json:"cols,omitempty"`
	Signal  int               `json:"signal,omitempty"`
	Exit    int               `json:"exit,omitempty"`
	Message string            `json:"message,omitempty"`
	Record  string            `json:"record,omitempty"`
	Digests map[string]string `json:"digests,omitempty"`
	// Quarantine lists workspace paths (relative, slash-separated) that must
	// not go back to the host.
	Quarantine []string `json:"quarantine,omitempty"`
	// Masks are about transcripts that must not be kept as they are.
	Masks []TranscriptMasks `json:"masks,omitempty"`
	// Runs are those of a host's watch, and Answer the engine's signed
	// HostWatchAnswer about them.
	Runs   []RunID `json:"runs,omitempty"`
	Answer *Signed `json:"answer,omitempty"`
}

// Exit statuses of sealedctl run for Sealed's own failures, as in env(1).
const (
	ExitFailure     = 1
	ExitUsage       = 2
	ExitDenied      = 3
	ExitPending     = 4
	ExitSealed      = 125
	ExitNotRunnable = 126
	ExitNotFound    = 127
)
