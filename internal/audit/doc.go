// Package audit is Sealed's log: an append-only list of events that anyone can
// verify from files alone, and the signed record that a run leaves in it.
//
// # Idea
//
// Each event becomes a small leaf of an RFC 6962 Merkle tree. The head of the
// tree is signed. The leaf holds no content, only the hash of a salted body, so
// one entry can be disclosed or erased alone while the tree stays whole. The
// tree is published in the standard C2SP form, so clients that others wrote can
// read it.
//
// # Guarantee
//
// An Append that returned without error is durable and covered by the signed
// head in its receipt. What it attached became durable with it, and stays with
// the log until its owner has settled it. Any two heads that one log ever hands
// out are consistent: the smaller tree is a prefix of the larger one, through
// crashes, failed writes and writes whose outcome is unknown. [VerifyDir] finds
// every changed, missing, moved or added byte in an exported log and names the
// entry.
//
// # What it does not guarantee
//
// The log says what the engine did, not that the engine is honest: whoever holds
// the log key and its storage can write another history. A checkpoint pinned by
// the verifier, the checkpoints in the records of runs, or a witness reveal
// that; without one of them a log that was cut back to an older signed head looks
// like that older log. The storage must be linearizable, writes of one key must
// be atomic, and one process at a time may write. Erasing an entry removes body
// and salt from the storage's current state, not from backups of it. The body of
// an entry is "names only" because its writer keeps to that; nothing here can
// tell a name from a secret. An [Attachment] is not part of the log: nothing
// proves to anybody what it was.
//
// # Leaf
//
// One line of JSON without spaces or final newline, at most 2 KiB, fields in this
// order and no others:
//
//	{"v":1,"seq":N,"time":"T","type":"run.claimed","run":"R","body":"H"}
//
// seq counts from 0 without gaps. T is RFC 3339 in UTC with the shortest fraction
// and never decreases. type is lower-case words joined by dots, at most 64 bytes. R is a
// ULID or empty. H is the lower-case hex of SHA-256(salt ‖ body). A reader
// refuses a leaf that differs in any byte from the encoding of what it parsed to.
// The leaf hash is RFC 6962 §2.1: SHA-256(0x00 ‖ leaf).
//
// # Side
//
// A body is one JSON object, compact, at most 32 KiB, printable ASCII only
// (everything else as \u escapes, so no name can move a cursor or start a line),
// no member name twice. The member "skew":true, which the log adds at the end,
// says that the clock had gone backwards and time is that of the entry before.
// A salt is 16 random bytes. As a file the two are
//
//	{"salt":"<base64>","body":"<base64>"}
//
// # Tree and checkpoint
//
// C2SP tlog-tiles (https://c2sp.org/tlog-tiles): height 8, the paths
// "checkpoint", "tile/<L>/<N>[.p/<W>]" and "tile/entries/<N>[.p/<W>]". An entry
// bundle is, for each leaf, its length as a big-endian uint16 and its bytes. The
// checkpoint (https://c2sp.org/tlog-checkpoint) is a signed note of exactly three
// lines: origin, size in decimal, root in base64. The name of the note key is the
// origin.
//
// # Record
//
// A DSSE envelope with one signature around an in-toto Statement v1 with
// predicate type https://sealed.dev/attestation/agent-run/v1, signed by the
// Ed25519 key that the body of the run's run.claimed entry names as "run_key"
// (standard base64). The body of run.finished names the SHA-256 of the envelope
// as "record_sha256" (lower-case hex).
//
// # Export
//
// [VerifyDir] reads, and [WriteDir] and [WriteRecord] write, a directory:
//
//	checkpoint
//	tile/…                          as above, for exactly this tree size
//	sides/<seq>.json                absent when erased
//	records/<run>.dsse.json
//	records/<run>/stdout.log        optional, as is stderr.log
//
// How the log is kept in storage, and why it cannot fork, is in DESIGN.md.
package audit
