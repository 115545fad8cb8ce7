package redact

import (
	"bytes"
	"math"
)

const (
	maskOpen  = "[sealed:"
	maskClose = "]"
	minNeedle = 8 // bytes of the shortest derived needle
)

// maskOf returns the text that takes the place of a value of key.
func maskOf(key string) string { return maskOpen + key + maskClose }

// collides reports whether printing the mask of key shows value, or completes it so that fewer than 8 other bytes of it are left to recognize.
func collides(key string, value []byte) bool {
	if len(value) > len(maskOpen)+len(key)+len(maskClose) && bytes.IndexByte(value, '[') < 0 && bytes.IndexByte(value, ']') < 0 {
		return false // it does not fit into the mask, and every piece that fits at its edges has a bracket
	}
	m := []byte(maskOf(key))
	if bytes.Contains(m, value) || bytes.Contains(value, m) {
		return true
	}
	for k := 1; k < len(value) && k < len(m); k++ {
		touches := bytes.HasSuffix(m, value[:k]) || bytes.HasPrefix(m, value[len(value)-k:])
		if touches && len(value)-k < minNeedle && len(value) >= minNeedle {
			return true
		}
	}
	return false
}

// trimmed returns the needles that keep mask from completing the value of e: if the value begins as mask ends, the rest of the value is a needle too, and
// likewise at the other end.
func trimmed(e entry, mask string) []pattern {
	var out []pattern
	m, v := []byte(mask), e.value
	for k := 1; k < len(m) && len(v)-k >= minNeedle; k++ {
		if bytes.HasSuffix(m, v[:k]) {
			out = append(out, pattern{key: e.key, form: formRaw, text: v[k:]})
		}
		if bytes.HasPrefix(m, v[len(v)-k:]) {
			out = append(out, pattern{key: e.key, form: formRaw, text: v[:len(v)-k]})
		}
	}
	return out
}

// weak reports whether value is too easily guessed, or met by chance, to be a needle. Bits are counted from the value's own byte frequencies, so this
// finds "aaaabbbb" and not "password1".
func weak(value []byte) bool {
	var freq [256]int
	for _, c := range value {
		freq[c]++
	}
	bits, n := 0.0, float64(len(value))
	for _, f := range freq {
		if f == len(value) {
			return true
		}
		if f > 0 {
			bits -= float64(f) / n * math.Log2(float64(f)/n)
		}
	}
	return len(value) < 8 || len(value) < 16 && bits < 3-1e-9
}
