package audit

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// What parses has one form: the one that it was parsed from.

func FuzzLeaf(f *testing.F) {
	leaf := Leaf{Seq: 7, Time: time.Unix(1e9, 5).UTC(), Type: "run.claimed", Run: runA}
	f.Add(leaf.Marshal())
	f.Add([]byte(`{"v":1,"seq":0,"time":"2026-01-01T00:00:00Z","type":"a","run":"","body":""}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if l, err := ParseLeaf(data); err == nil && !bytes.Equal(l.Marshal(), data) {
			t.Errorf("%q", data)
		}
	})
}

func FuzzBundle(f *testing.F) {
	f.Add(marshalBundle([][]byte{[]byte("a"), nil, []byte("bc")}))
	f.Add([]byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		if leaves, err := ParseBundle(data); err == nil && !bytes.Equal(marshalBundle(leaves), data) {
			t.Errorf("%x", data)
		}
	})
}

func FuzzSide(f *testing.F) {
	data, err := Side{Salt: make([]byte, SaltSize), Body: []byte(`{"a":{"b":[1,"\u001b"]},"skew":true}`)}.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"salt":"","body":"e30="}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseSide(data)
		if err != nil {
			return
		}
		if again, _ := s.Marshal(); !bytes.Equal(again, data) {
			t.Errorf("%q", data)
		}
	})
}

func FuzzBody(f *testing.F) {
	f.Add([]byte(`{"a":"\u00e9é","b":[{"c":null}]}`))
	for _, seed := range []string{
		`{"a":1,"a":2}`, `{"a":{"b":1,"b":2}}`, `{"a":[{"b":1},{"b":2}],"b":"a"}`, `{"a":"x\":","\u0061":1}`, `{"a\\":1,"a":"\\"}`, `[{"a":1,"a":2}]`, `{"skew":true}`,
		"{\"\xff\":1,\"\xfe\":2}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		body, members, err := normalBody(data)
		if json.Valid(data) && bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("{")) && (err == nil) != membersAreUnique(data) {
			t.Errorf("%q: %v", data, err)
		}
		if err != nil {
			return
		}
		want := map[string]json.RawMessage{}
		if err := json.Unmarshal(data, &want); err != nil || !slices.Equal(slices.Sorted(maps.Keys(members)), slices.Sorted(maps.Keys(want))) {
			t.Errorf("%q has the members %v: %v", data, members, err)
		}
		for _, c := range body {
			if c < 0x20 || c > 0x7e {
				t.Errorf("byte %#x in %q", c, body)
			}
		}
		if again, _, err := normalBody(body); err != nil || !bytes.Equal(again, body) {
			t.Errorf("%q became %q: %v", body, again, err)
		}
	})
}

// membersAreUnique asks the decoder of the standard library, slowly.
func membersAreUnique(data []byte) bool {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	unique := true
	var value func()
	value = func() {
		opened, _ := dec.Token()
		if _, nested := opened.(json.Delim); !nested {
			return
		}
		names := map[json.Token]bool{}
		for dec.More() {
			if opened == json.Delim('{') {
				name, _ := dec.Token()
				unique = unique && !names[name]
				names[name] = true
			}
			value()
		}
		_, _ = dec.Token()
	}
	value()
	return unique
}

func FuzzTilePath(f *testing.F) {
	f.Add("tile/0/x001/234.p/7")
	f.Add("tile/entries/000")
	f.Fuzz(func(t *testing.T, path string) {
		if tile, err := parseTilePath(path); err == nil && tilePath(tile) != path {
			t.Errorf("%q became %q", path, tilePath(tile))
		}
	})
}

// Whatever is in storage under a journal key, reading it does not panic, and
// what is accepted fits its head and could have been appended.
func FuzzJournal(f *testing.F) {
	signer, _ := testKey(f, "sealed.test/log")
	k := &keeper{s: newMemory()}
	l, err := Open(f.Context(), k.s, signer, k.config())
	if err != nil {
		f.Fatal(err)
	}
	if _, err := l.Append(f.Context(), row("grant/a"), Event{Type: "test.event"}); err != nil {
		f.Fatal(err)
	}
	good := k.s.data[journalKey(0)]
	f.Add(good)
	f.Add(bytes.Replace(good, []byte(`"key":"grant/a"`), []byte(`"key":""`), 1))
	f.Add(bytes.Replace(good, []byte(`"value":"`), []byte(`"value":null,"x":"`), 1))
	f.Add(bytes.Replace(good, []byte(`"attach":{`), []byte(`"attach":null,"attach":{`), 1))
	f.Add([]byte(`{"v":1,"start":0,"entries":[{"leaf":"","attach":{}}],"frontier":[],"head":""}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		j, err := parseJournal(0, data)
		v := &view{}
		if err != nil || v.extend(j) != nil {
			return
		}
		if head, err := checkpointText(v.head); err != nil || head.Size != uint64(v.size) || head.Root != v.peaks.root() {
			t.Errorf("%q: its head is not that of its entries", data)
		}
		for _, a := range attachments(v.tail) {
			if err := a.check(); err != nil {
				t.Errorf("%q: %v", data, err)
			}
		}
	})
}

func FuzzRecord(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	good, err := SignRecord(statement(runA, []byte("c"), []byte("f")), key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"payloadType":"","payload":"","signatures":[{"keyid":"","sig":""}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := OpenRecord(data, key.Public().(ed25519.PublicKey)); err == nil && !bytes.Equal(data, good) {
			t.Errorf("%q", data)
		}
	})
}

// G18: a hostile export never panics and never verifies. The fuzzer writes any
// file of an export that is sound otherwise.
func FuzzVerify(f *testing.F) {
	s := newSample(f)
	paths := slices.Sorted(maps.Keys(s.files))
	for i, path := range paths {
		f.Add(byte(i), s.files[path].Data)
	}
	f.Add(byte(0), []byte("sealed.test/log\n9007199254740993\nAAAA\n\n— x y\n"))
	f.Fuzz(func(t *testing.T, file byte, data []byte) {
		path := paths[int(file)%len(paths)]
		if bytes.Equal(s.files[path].Data, data) {
			return
		}
		files := s.with(func(files fstest.MapFS) { files[path].Data = data })
		if _, err := s.verify(files, 0, nil); err == nil {
			t.Errorf("%s: %q was accepted", path, data)
		}
	})
}

func FuzzCheckpoint(f *testing.F) {
	skey, vkey, err := note.GenerateKey(bytes.NewReader(make([]byte, 64)), "sealed.test/log")
	if err != nil {
		f.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		f.Fatal(err)
	}
	good, err := signCheckpoint(signer, 3, emptyRoot)
	if err != nil {
		f.Fatal(err)
	}
	v := verifierOf(f, vkey)
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := OpenCheckpoint(data, v)
		if err == nil && c.Unknown == 0 && !bytes.Equal(data, good) {
			t.Errorf("%q", data)
		}
		_, _ = checkpointText(data)
	})
}

func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 16, 64} {
		b.Run(fmt.Sprint(writers, "writers"), func(b *testing.B) {
			signer, _ := testKey(b, "sealed.test/log")
			s := newMemory()
			l := openLog(b, s, signer)
			body := map[string]string{"key": "GITHUB_TOKEN", "profile": "team/release", "grant": "01J00000000000000000000003"}
			work := make(chan struct{}, writers)
			b.ResetTimer()
			var wg sync.WaitGroup
			for range writers {
				wg.Go(func() {
					for range work {
						if _, err := l.Append(b.Context(), Event{Type: "issue.ok", Body: body}); err != nil {
							b.Error(err)
						}
					}
				})
			}
			for range b.N {
				work <- struct{}{}
			}
			close(work)
			wg.Wait()
			b.ReportMetric(float64(s.puts)/float64(b.N), "puts/op")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}
