// Package sealed is the vocabulary of Sealed: the names, documents and
// signed messages that its components exchange.
//
// It does no I/O and keeps no state. Every type that crosses a boundary is
// parsed here, strictly: unknown or repeated fields, fields in another case,
// trailing data, oversized documents and names outside their grammar are
// refused, so each format has one parser and each document one reading.
//
// # Encoding
//
// Documents are JSON. A document that is signed or digested is handled as the
// exact bytes that were produced, never re-encoded: the signature covers
//
//	domain ‖ 0x00 ‖ bytes
//
// where domain is one of the Domain constants. A digest is the SHA-256 of the
// same construction, written as lower-case hex. Two documents of different
// kinds therefore never share a digest or a signature.
//
// # What this package does not do
//
// It does not decide, and it does not authenticate. A parsed document is well
// formed, nothing more.
package sealed
