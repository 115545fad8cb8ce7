package redact

import (
	"bytes"
	"slices"
)

// block is a content block of which deltas were seen.
type block struct {
	id    string
	loose bool // ends with the first event that does not belong to it
	s     *stream
	// The last event with a delta, and the place of the delta in it.
	frame      frame
	start, end int
}

// block returns the block of a delta.
func (j *JSON) block(d delta) (*block, error) {
	if i := slices.IndexFunc(j.blocks, func(b *block) bool { return b.id == d.id }); i >= 0 {
		return j.blocks[i], nil
	}
	if len(j.blocks) == maxBlocks {
		oldest := j.blocks[0]
		if err := j.endBlocks(func(b *block) bool { return b == oldest }); err != nil {
			return nil, err
		}
	}
	b := &block{id: d.id, loose: d.loose, s: newStream(j.set)}
	j.blocks = append(j.blocks, b)
	return b, nil
}

// endBlocks ends blocks: what each still holds goes out in one more event.
func (j *JSON) endBlocks(which func(*block) bool) error {
	var left []*block
	for _, b := range j.blocks {
		if !which(b) {
			left = append(left, b)
			continue
		}
		if err := b.s.close(); err != nil {
			return err
		}
		rest := bytes.Clone(b.s.out)
		b.s.wipe()
		add(j.counts, b.s.report(j.name))
		if len(rest) == 0 || b.frame.body == nil {
			continue
		}
		f := b.frame
		if !bytes.HasSuffix(f.tail, []byte("\n")) { // it was the last one, and not ended
			between := "\n"
			if len(f.head) > 0 { // of server-sent events
				between = "\n\n"
			}
			f.head = append([]byte(between), f.head...)
		}
		f.body = slices.Concat(f.body[:b.start], quote(rest), f.body[b.end:])
		if err := j.put(f); err != nil {
			return err
		}
	}
	j.blocks = left
	return nil
}

// some feeds p and returns what is certain, which is good until the next call.
func (s *stream) some(p []byte) ([]byte, error) {
	var out []byte
	for rest := p; ; {
		n := min(len(rest), piece)
		if err := s.feed(rest[:n]); err != nil {
			return nil, err
		}
		if rest = rest[n:]; len(rest) == 0 && out == nil {
			return s.out, nil
		}
		if out = append(out, s.out...); len(rest) == 0 {
			return out, nil
		}
	}
}

// all feeds p as the end of what was fed, and begins anew.
func (s *stream) all(p []byte) ([]byte, error) {
	out, err := s.some(p)
	if err != nil {
		return nil, err
	}
	out = bytes.Clone(out)
	if err := s.close(); err != nil {
		return nil, err
	}
	out = append(out, s.out...)
	s.shrink()
	s.exact.restart(s.needs.exact, s.done)
	s.folded.reset(s.needs.folded, s.needs.pairs, s.done)
	s.over.restart(s.needs, s.done)
	return out, nil
}
