package bitwarden

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

// The access token of Bitwarden's own tests, and the key they expect.
const (
	vectorToken = "0.ec2c1d46-6a4b-4751-a310-af9601317f2d.C2IgxjjLF7qSshsbwe8JGcbM075YXw:X8vbvA0bduihIDe/qrzIQQ=="
	vectorKey   = "H9/oIRLtL9nGCQOVDjSMoEbJsjWXSOCb3qeyDt6ckzS3FhyboEDWyTP/CQfbIszNmAVg2ExFganG1FVFGXO/Jg=="
)

func bytesOf(t testing.TB, v *secret.Value) []byte {
	t.Helper()
	var out []byte
	_ = v.Reveal(func(b []byte) error { out = append(out, b...); return nil })
	return out
}

func TestAccessToken(t *testing.T) {
	for _, text := range []string{vectorToken, strings.TrimRight(vectorToken, "=")} {
		got, err := parseAccessToken([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if got.id != "ec2c1d46-6a4b-4751-a310-af9601317f2d" || string(bytesOf(t, got.secret)) != "C2IgxjjLF7qSshsbwe8JGcbM075YXw" || base64.StdEncoding.EncodeToString(bytesOf(t, got.key)) != vectorKey {
			t.Error("the token was taken apart wrongly")
		}
	}
	for name, text := range map[string]string{
		"empty": "", "version 1": "1" + vectorToken[1:], "no seed": vectorToken[:strings.Index(vectorToken, ":")], "short seed": strings.Replace(vectorToken, "X8vb", "", 1),
		"long seed": strings.Replace(vectorToken, ":", ":AAAA", 1), "not base64": strings.Replace(vectorToken, ":X", ":*", 1), "no id": "0..x:X8vbvA0bduihIDe/qrzIQQ==",
		"upper id": strings.Replace(vectorToken, "ec2c", "EC2C", 1), "no secret": "0.ec2c1d46-6a4b-4751-a310-af9601317f2d.:X8vbvA0bduihIDe/qrzIQQ==", "daemon": strings.Replace(vectorToken, "0.", "0.daemon.", 1),
		"newline": strings.Replace(vectorToken, "C2I", "C2\nI", 1), "endless": vectorToken + strings.Repeat("=", 2000),
	} {
		if _, err := parseAccessToken([]byte(text)); !errors.Is(err, sealed.ErrInvalid) || strings.Contains(err.Error(), "C2I") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// encrypt makes an EncString of type 2, for the double and the tests here.
func encrypt(key []byte, iv [16]byte, plain string) string {
	n := aes.BlockSize - len(plain)%aes.BlockSize
	text := []byte(plain + strings.Repeat(string(rune(n)), n))
	return seal(key, iv, text)
}

func seal(key []byte, iv [16]byte, text []byte) string {
	block, err := aes.NewCipher(key[:32])
	if err != nil {
		panic(err)
	}
	cipher.NewCBCEncrypter(block, iv[:]).CryptBlocks(text, text)
	h := hmac.New(sha256.New, key[32:])
	h.Write(iv[:])
	h.Write(text)
	enc := base64.StdEncoding.EncodeToString
	return "2." + enc(iv[:]) + "|" + enc(text) + "|" + enc(h.Sum(nil))
}

func TestDecrypt(t *testing.T) {
	raw, _ := base64.StdEncoding.DecodeString(vectorKey)
	key := secret.New(append([]byte(nil), raw...))
	for _, plain := range []string{"", "x", strings.Repeat("y", 16), strings.Repeat("z", 1000)} {
		if got, err := decrypt(key, encrypt(raw, [16]byte{1}, plain)); err != nil || string(got) != plain {
			t.Errorf("%d bytes: %v", len(plain), err)
		}
	}
	good := encrypt(raw, [16]byte{7}, "the value of the secret")
	parts := strings.Split(good[2:], "|")
	flip := func(part, at int) string {
		b, _ := base64.StdEncoding.DecodeString(parts[part])
		b[at] ^= 1
		changed := append([]string(nil), parts...)
		changed[part] = base64.StdEncoding.EncodeToString(b)
		return "2." + strings.Join(changed, "|")
	}
	other := append([]byte(nil), raw...)
	other[63] ^= 1
	otherAES := append([]byte(nil), raw...)
	otherAES[0] ^= 1
	for name, enc := range map[string]string{
		"empty": "", "type 0": "0" + good[1:], "type 7": "7" + good[1:], "type 22": "2" + good, "no type": good[2:], "no mac": "2." + parts[0] + "|" + parts[1], "iv": flip(0, 3),
		"text": flip(1, 0), "mac": flip(2, 31), "swapped": "2." + parts[1] + "|" + parts[0] + "|" + parts[2], "four parts": good + "|" + parts[2], "not base64": good[:len(good)-4] + "*===",
		"short mac": "2." + parts[0] + "|" + parts[1] + "|" + base64.StdEncoding.EncodeToString(make([]byte, 16)), "no text": "2." + parts[0] + "||" + parts[2],
		"other mac key": encrypt(other, [16]byte{}, "x"), "other AES key": encrypt(otherAES, [16]byte{}, "x"), "no padding": seal(raw, [16]byte{}, make([]byte, 16)),
		"padding of 17": seal(raw, [16]byte{}, []byte(strings.Repeat("\x11", 32))), "mixed padding": seal(raw, [16]byte{}, []byte(strings.Repeat("x", 14)+"\x01\x02")),
	} {
		if got, err := decrypt(key, enc); !errors.Is(err, errCipher) || got != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got, err := decrypt(key, good); err != nil || string(got) != "the value of the secret" {
		t.Errorf("negative control: %v", err)
	}
	if _, err := decrypt(secret.New(nil), good); !errors.Is(err, errCipher) {
		t.Error(err)
	}
}

func FuzzParseEncString(f *testing.F) {
	raw, _ := base64.StdEncoding.DecodeString(vectorKey)
	for _, s := range []string{"", "2.||", "0.a|b", encrypt(raw, [16]byte{1}, "x"), "2.AAAAAAAAAAAAAAAAAAAAAA==|AAAA|AAAA"} {
		f.Add(s)
	}
	key := secret.New(raw)
	f.Fuzz(func(t *testing.T, enc string) {
		if _, err := decrypt(key, enc); err != nil && !errors.Is(err, errCipher) {
			t.Fatal(err)
		}
	})
}

func FuzzParseAccessToken(f *testing.F) {
	for _, s := range []string{"", vectorToken, "0..:", "0.a.b:c"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := parseAccessToken(b); err != nil && !errors.Is(err, sealed.ErrInvalid) {
			t.Fatal(err)
		}
	})
}
