// Package sandboxinit is what sealed-init does: process 1 of a sandbox, the
// only process that holds credential values, and the agent's parent.
//
// # The steps of a run
//
//  1. Harden: refuse unlisted environment, be undumpable, close foreign
//     descriptors, ignore what could make the runtime print its memory.
//  2. Read the trust file from the inherited descriptor, then the Boot
//     document. Nothing else that the launcher says is believed.
//  3. Measure the sandbox, the agent's executable, command, input, workspace.
//  4. Install the seccomp filter.
//  5. Fetch X509-SVID and JWT-SVID; log in to Vault over TLS pinned by the
//     trust file; claim the run with fresh run keys.
//  6. Check the engine's signed answer: it, not the launcher, decides.
//  7. Issue what may be issued at once; arm the redactor; open the proxy;
//     store command and input with the engine, redacted with those values.
//  8. Start the agent from the descriptor that was measured.
//  9. Watch: renew, freeze, stop. At the end kill every process, scan the
//     workspace, look at the output a second time, sign the record, finish.
//
// # Guarantee
//
// No value leaves this process but into a bound request or, by the profile's
// and the policy's explicit leave, into the agent's environment. Every byte
// that the agent writes to its streams passes the redactor first. Where that is
// JSON events, texts that are cut over several are joined.
//
// What passed is looked at again at the end, with every value of the run, by a
// search of another kind (redact.Deep). What it finds is an event redact.miss
// and a member of the record, and is masked in the stored transcript, which the
// record then names. It was shown: the second look is for what is kept. Where the
// mount's configuration says so, it also looks for what has the shape of a
// credential or of personal data; that is an event redact.detected.
//
// # What it does not guarantee
//
// Command and input are kept as they were redacted before the agent started: a
// value that is granted later and was in them, too, stays there.
//
// The second look has bounds: 16 MiB of each stream, two seconds for both, 64 KiB
// at a time. It decodes at most 256 KiB of the text between two masks. A record
// whose output was beyond any of these has a warning. A run that ends without a
// record, because init or the supervisor was killed, has had no second look, and
// nor has one of mode sandboxed, which has no values.
//
// Of a revocation the run hears by the watch of its host, which the init of one
// run there makes for all, or by its own. Supervisors of the same user carry the
// answers: they can delay the news until the run watches by itself, after 1.5
// seconds, and by keeping everything back make the run freeze and stop as if the
// engine were out of reach; see hearsay.go. Init makes the host's watch with its own
// token, for runs that its supervisor names: it may learn of them whether they go
// on, and carries no more about them than that.
//
// With env delivery the agent holds the value, and can encode it in ways no
// redactor knows. Under bubblewrap init and agent share a uid; what keeps the
// agent out of init's memory is that init's executable is root-owned and not
// readable (mode 0711).
package sandboxinit
