package redact

import "bytes"

// view is letters and digits, in lower case, and where they came from.
type view struct {
	text []byte
	at   []origin
}

type origin struct{ start, end int }

// cell is what one unit of the input leaves on a line of a terminal.
type cell struct {
	c          byte
	start, end int
}

// viewsOf returns p as letters and digits in the order in which they are written, and, where that differs, as a terminal of endless width shows them.
func viewsOf(p []byte) []view {
	written := view{}
	each(p, func(n int, i int, c byte) { written.add(cell{c, i, i + n}) })
	views := []view{written}
	if bytes.IndexByte(p, '\b') >= 0 || bytes.IndexByte(p, '\r') >= 0 || bytes.Contains(p, []byte("\x1b[")) {
		if shown := shownOf(p); !bytes.Equal(shown.text, written.text) {
			views = append(views, shown)
		}
	}
	return views
}

func (v *view) add(c cell) {
	if c.c != 0 {
		v.text, v.at = append(v.text, c.c), append(v.at, origin{c.start, c.end})
	}
}

// each calls unit for every unit of p, with its length, its place and the character it leaves.
func each(p []byte, unit func(n, i int, c byte)) {
	for i := 0; i < len(p); {
		n, c := token(p[i:], true)
		unit(n, i, c)
		i += n
	}
}

// shownOf carries out what moves the cursor within a line.
func shownOf(p []byte) view {
	var v view
	var line []cell
	col := 0
	put := func(c cell) {
		for len(line) <= col {
			line = append(line, cell{})
		}
		line[col] = c
		col++
	}
	each(p, func(n, i int, c byte) {
		switch b := p[i]; {
		case b == '\n':
			for _, c := range line {
				v.add(c)
			}
			line, col = line[:0], 0
		case b == '\r':
			col = 0
		case b == '\b':
			col = max(0, col-1)
		case b == 0x1b && n > 2:
			col = min(moved(p[i:i+n], col), maxLine)
		case b < 0x20 || b == 0x7f || b >= 0x80 && c == 0 && n == 1:
		case b >= 0x80 && c == 0:
			if n > 1 && col < maxLine { // a letter of another script has a cell; marks and joiners, which have none, begin with E2, CC, EF or F3
				if b != 0xE2 && b != 0xEF && b != 0xF3 && b != 0xCC && b != 0xCD {
					put(cell{0, i, i + n})
				}
			}
		case col < maxLine:
			put(cell{c, i, i + n})
		}
	})
	for _, c := range line {
		v.add(c)
	}
	return v
}

const maxLine = 1 << 20 // columns

// moved returns the column after a control sequence: CUB, CUF and CHA of ECMA-48 move the cursor within its line.
func moved(seq []byte, col int) int {
	if seq[1] != '[' {
		return col
	}
	n := 0
	for _, c := range seq[2 : len(seq)-1] {
		if c < '0' || c > '9' || n > maxLine {
			return col
		}
		n = n*10 + int(c-'0')
	}
	switch seq[len(seq)-1] {
	case 'D':
		return max(0, col-max(1, n))
	case 'C':
		return col + max(1, n)
	case 'G':
		return max(1, n) - 1
	}
	return col
}
