package sealed

import "strconv"

// PolicyKeysMessage is what a key that is trusted already signs, so that a set of
// policy keys which adds or changes one needs no second person: ECDSA P-256 with
// SHA-256, ASN.1, base64, over
// SigningBytes(DomainTrust, tenant ‖ "\n" ‖ version ‖ "\n" ‖ doc). version is that of
// the set in force plus one, decimal; doc is the exact text of the set. With tenant
// and version in it, a signed set can't be used on another mount or after it was
// superseded.
func PolicyKeysMessage(tenant Name, version int, doc string) []byte {
	return SigningBytes(DomainTrust, []byte(string(tenant)+"\n"+strconv.Itoa(version)+"\n"+doc))
}
