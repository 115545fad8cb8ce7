// Package redact replaces credential values in byte streams by the names of their keys.
//
// The idea: every value is registered in a [Set] before anything can print it. A [Writer] or [Reader] looks for each value in two views of the
// same stream, with one Aho–Corasick automaton per view.
//
//  1. The exact view is the bytes as they are. Its needles are the value and its encodings: base64 and base64url in the three alignments, with the
//     edge characters that depend on neighbors cut off; hex in both cases; base32; URL, JSON, Go, shell and XML escapes; UTF-16; reversed;
//     reversed then base64; rot13; Unicode tag characters; the lines (16 bytes and more) of a value with several lines.
//  2. The folded view keeps ASCII letters and digits only, in lower case. Escapes (\xNN, \uNNNN, \NNN, %NN, &#N;, also doubled) are decoded, full-width
//     forms become ASCII, terminal control sequences disappear, a backspace takes back the character before it, and everything else (white
//     space, punctuation, NUL, zero-width and other non-ASCII characters) is dropped. Each kept character remembers the bytes it came from.
//     Needles are folded in the same way. So a value with one character per line, hex with colons, wrapped base64, mixed case, or any
//     mixture of escapes is one plain match here.
//
// Matches that overlap, in either view, become one mask [sealed:KEY] that names the key of the longest match. The bytes between the first and the last
// character of a match are part of it. Every other byte comes out unchanged and in order.
//
// # Guarantee
//
// No registered form leaves a Writer or Reader whole, however the stream is cut into writes, and the output after Close does not depend on the cuts
// (while the set does not change and Flush is not called). Only the longest suffix that can still become a match is held back. It is never released by
// a timer. When the stream ends in a live partial match of at least min(8, half) bytes of a needle, that is masked too.
//
// Memory is bounded whatever the input: a stream holds at most the longest needle, plus 64 KiB of bytes between the characters of a folded match. An
// automaton needs about 10 bytes for each byte of needle, roughly 20 KiB for a value of 40 bytes.
//
// What is held back by an ordinary Writer depends on what the stream holds. For streams that the adversary reads there is [NewSteadyWriter].
//
// # What it does not guarantee
//
// Redaction is a second wall, not a boundary against a process that holds the value and means to smuggle it. Not found:
//   - encryption, compression, ciphers other than rot13, hashes, base58, ascii85, decimal codes, encodings within encodings (except the ones named above),
//     text hidden in pictures or prose;
//   - a value cut into pieces with other letters or digits between them, such as the rows of a hex dump that carry offsets, or pieces on different
//     streams: each Writer sees one stream;
//   - the folded form of a value that folds to too little: fewer than 8 characters, 12 for letters alone, 14 for digits alone, or less than half of the
//     value. Only its exact forms apply, and then also the spelled-out escapes;
//   - in a folded match, the punctuation at the two ends of a value: it stays;
//   - folded characters that an escape or a control sequence of the surroundings swallows, such as a first letter directly after ESC [, or a text inside a
//     window title that is not in an exact form;
//   - a folded match with more than 64 KiB of dropped bytes inside;
//   - up to three leading characters of a value that is typed with backspaces, cursor movement other than backspace, and more than 64
//     backspaces in a row;
//   - values longer than 8 KiB in other forms than raw, base64, and lines.
//
// A value of few bits is a source of false masks and of guesses, so [Set.Add] refuses it unless told otherwise.
//
// The package has no dependency but the standard library and keeps no state of its own.
package redact
