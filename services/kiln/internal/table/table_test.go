package table

import (
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// Whatever the cells hold: on a terminal no line is wider than it, and each cell
// begins below its column's header or is not shown.
func TestTableFits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		columns := rapid.IntRange(1, 6).Draw(t, "columns")
		table := Table{GiveWay: rapid.IntRange(0, columns).Draw(t, "giveWay")}
		for range columns {
			table.Header = append(table.Header, rapid.StringMatching(`[A-Z]{1,12}`).Draw(t, "header"))
		}
		for range rapid.IntRange(0, 5).Draw(t, "rows") {
			var row []Cell
			for range columns {
				row = append(row, Cell{Text: rapid.StringMatching(`[a-zäß0-9 :/…]{0,60}`).Draw(t, "cell")})
			}
			table.Add(row...)
		}
		width := rapid.IntRange(1, 150).Draw(t, "width")
		var out strings.Builder
		if err := table.Write(&out, Terminal{Width: width}); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != 1+len(table.Rows) {
			t.Fatalf("%d lines of %d rows", len(lines), len(table.Rows))
		}
		for _, line := range lines {
			if utf8.RuneCountInString(line) > width || strings.TrimRight(line, " ") != line {
				t.Fatalf("%q in %d columns", line, width)
			}
		}
	})
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"  a\tb\nc ": "a b c", "\x1b[2J\x07": "?[2J?", "ä…": "ä…", "\xff": "?", "": "",
	} {
		if got := Clean(in); got != want {
			t.Errorf("Clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestPaint(t *testing.T) {
	if got := (Terminal{}).Paint(Red, "x"); got != "x" {
		t.Errorf("without colours: %q", got)
	}
	if got := (Terminal{Colour: true}).Paint(Red, "x"); got != "\x1b[31mx\x1b[0m" {
		t.Errorf("with colours: %q", got)
	}
	if got := TerminalOf(&strings.Builder{}); got != (Terminal{}) {
		t.Errorf("a buffer is a terminal: %+v", got)
	}
}
