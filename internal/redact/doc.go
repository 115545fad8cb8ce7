// Package redact replaces credential values in byte streams by the names of their keys.
//
// The idea: every value is registered in a [Set] before anything can print it. A [Writer] or [Reader] looks for each value in two views of the
// same stream.
//
//  1. The exact view is the bytes as they are. Its needles are the value and its encodings: base64 and base64url in the three alignments, with the
//     edge characters that depend on neighbors cut off; hex in both cases; URL, JSON, Go, Python, shell, XML and quoted-printable escapes; rot47; Unicode
//     tag characters; the lines (16 bytes and more) of a value with several lines; payload and signature of a JWT; the password of a URL.
//  2. The folded view keeps letters and digits only, in lower case. Escapes (\xNN, \uNNNN, \NNN, %NN, &#N;, also doubled) are decoded; letters that
//     Unicode's compatibility forms or their looks make one with ASCII become that; terminal control sequences disappear; a backspace takes back the
//     character before it; and everything else (white space, punctuation, NUL, zero-width and other characters) is dropped. Each kept character can be
//     traced to the bytes it came from. Needles are folded in the same way. So a value with one character per line, hex with colons, wrapped base64, mixed
//     case, UTF-16, or any mixture of escapes is one plain match here. Forms that change the value as a whole are looked for here: base32, reversed, reversed
//     then base64, rot13, decimal codes, bytes of a C array.
//     Where a carriage return overwrites a line, what a terminal then shows is looked at too: see overwrite.go.
//
// Matches that overlap, in either view, become one mask [sealed:KEY] that names the key of the longest match. The bytes between the first and the last
// character of a match are part of it. Every other byte comes out unchanged and in order.
//
// Both views are searched by looking at eight bytes in every thirteen or so, whatever the number of values: see index.go and sieve.go. The folded view has to read every
// byte; where the processor can, sixteen at once: see compact.go. Nothing is passed over for speed. On amd64
// a stream of 32 KiB writes without values passes the exact view at a fifth of the speed of memcpy with 1,000 values, and both views at a seventeenth. On other
// processors, where the same work is done in Go alone, both views take nearly twice as long.
//
// For streams of JSON events, whose deltas cut texts in pieces, there is [JSON]; for whole trees of files, Git's objects included, [Tree]; to only look,
// [Scan]; and for what is to be stored, [Deep], a second search that shares no code with the first and finds more: encodings within encodings, what a terminal
// would show, XOR, and by choice what looks like a credential or like personal data. [Deep.Missed] compares the two.
//
// # Guarantee
//
// No registered form leaves a Writer or Reader whole, however the stream is cut into writes, and the output after Close does not depend on the cuts
// (while the set does not change and Flush is not called). Only the longest suffix that can still become a match is held back. It is never released by
// a timer. [Writer.Flush] releases the first three characters of it, and no more, also when it is called after every byte. When the stream ends in a live partial match of at least min(8, half) bytes of a needle, that is masked too.
//
// Memory is bounded whatever the input: a stream holds at most the longest needle, plus 64 KiB of bytes between the characters of a folded match. A value of
// more than 1.5 KiB is cut into pieces of 1 KiB that overlap, so no needle is longer than about 6 KiB. A set takes about 8 KiB for each value of 40 bytes.
//
// What is held back by an ordinary Writer depends on what the stream holds. For streams that the adversary reads there is [NewSteadyWriter].
//
// # What it does not guarantee
//
// Redaction is a second wall, not a boundary against a process that holds the value and means to smuggle it. Not found in streams:
//   - encryption, compression, ciphers other than rot13 and rot47, hashes, base58, ascii85, octal and binary dumps, encodings within encodings (except the ones
//     named above), text hidden in pictures or prose. Deep finds some of these;
//   - a value cut into pieces with other letters or digits between them, such as the rows of a hex dump that carry offsets, or pieces on different
//     streams: each Writer sees one stream;
//   - the folded form of a value that folds to too little: fewer than 8 characters, 12 for letters alone, 14 for digits alone, or less than half of the
//     value. Only its exact forms apply, and then also the spelled-out escapes;
//   - in a folded match, the punctuation at the two ends of a value: it stays;
//   - folded characters that an escape or a control sequence of the surroundings swallows, such as a first letter directly after ESC [, or a text inside a
//     window title that is not in an exact form;
//   - a folded match with more than 64 KiB of dropped bytes inside;
//   - up to three leading characters of a form, where Flush is called just behind them;
//   - up to three leading characters of a value that is typed with backspaces, more than 64 backspaces in a row, and cursor movement other than backspace
//     and carriage return. Deep carries these out;
//   - what was on a line before a carriage return and has gone out: of a value that a terminal shows when its beginning is typed over a line with its end, the
//     beginning is masked. A line is followed for 1024 columns and 2 KiB;
//   - values longer than 8 KiB in other forms than raw, base64, hex and lines; the end of a long value that is shorter than a piece, printed alone.
//
// A value of few bits is a source of false masks and of guesses, so [Set.Add] refuses it unless told otherwise.
//
// The package has no dependency but the standard library and keeps no state of its own.
package redact
