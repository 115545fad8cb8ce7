package sandboxinit

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/redact"
)

// pack is one of Git with objects that are blobs (gitformat-pack). Its
// checksum is not read.
func pack(blobs ...string) []byte {
	out := binary.BigEndian.AppendUint32([]byte("PACK\x00\x00\x00\x02"), uint32(len(blobs)))
	for _, b := range blobs {
		size := len(b)
		head := byte(3<<4 | size&15)
		for size >>= 4; size > 0; size >>= 7 {
			out, head = append(out, head|0x80), byte(size&0x7f)
		}
		out = append(out, head)
		var z bytes.Buffer
		w := zlib.NewWriter(&z)
		_, _ = w.Write([]byte(b))
		_ = w.Close()
		out = append(out, z.Bytes()...)
	}
	return append(out, make([]byte, 20)...)
}

// What a pack holds is found, though compressed after a header. Looking at its
// bytes alone does not find it: that is the control.
func TestScanContent(t *testing.T) {
	set := canarySet(t)
	long := strings.Repeat("all work and no play ", 1000)
	for name, c := range map[string]struct {
		content string
		want    int
		bad     bool
	}{
		"text":           {"a " + valueCanary, 1, true},
		"clean text":     {"PACKAGE of text", 0, false},
		"pack":           {string(pack(long, "key="+valueCanary+"\n"+long)), 1, true},
		"clean pack":     {string(pack(long, "key=none")), 0, false},
		"a pack cut off": {string(pack(long, long))[:60], 0, true},
	} {
		counts, bad, err := scanContent(strings.NewReader(c.content), set)
		if len(counts) != c.want || bad != c.bad || err != nil {
			t.Errorf("%s: %v, %v, %v", name, counts, bad, err)
		}
	}
	t.Run("control: as bytes", func(t *testing.T) {
		if counts, err := redact.Scan(bytes.NewReader(pack(long, "key="+valueCanary+"\n"+long)), set); len(counts) > 0 || err != nil {
			t.Errorf("%v, %v", counts, err)
		}
	})
}
