// Package table writes tables and texts for people: aligned, within a terminal's
// width, and plain where no terminal is.
package table

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Style is the colour of a cell.
type Style string

// The styles, as the parameters of ANSI's SGR.
const (
	Plain  Style = ""
	Bold   Style = "1"
	Faint  Style = "2"
	Red    Style = "31"
	Green  Style = "32"
	Yellow Style = "33"
	Cyan   Style = "36"
)

// Cell is one field of a table.
type Cell struct {
	Text  string
	Style Style
}

// Table is rows below a header, whose cells are separated by two spaces.
type Table struct {
	Header []string
	Rows   [][]Cell
	// GiveWay is how many of the last columns are cut first where a terminal is too
	// narrow.
	GiveWay int
}

const (
	gap = 2
	// minWidth is what a column that gives way keeps, as long as that is enough.
	minWidth = 8
)

// Add adds a row.
func (t *Table) Add(cells ...Cell) { t.Rows = append(t.Rows, cells) }

// Write writes the table. On a terminal no line is wider than that.
func (t *Table) Write(w io.Writer, term Terminal) error {
	header := make([]Cell, len(t.Header))
	for i, text := range t.Header {
		header[i] = Cell{text, Faint}
	}
	rows := append([][]Cell{header}, t.Rows...)
	widths := make([]int, len(header))
	for _, row := range rows {
		for i := range row {
			row[i].Text = Clean(row[i].Text)
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i].Text))
		}
	}
	if term.Width > 0 {
		fit(widths, t.GiveWay, term.Width)
	}
	for _, row := range rows {
		if _, err := fmt.Fprintln(w, line(row, widths, term)); err != nil {
			return err
		}
	}
	return nil
}

// line aligns one row, without spaces at its end.
func line(row []Cell, widths []int, term Terminal) string {
	var text strings.Builder
	spaces := 0
	for i, cell := range row {
		shown := Cut(cell.Text, widths[i])
		if shown != "" {
			text.WriteString(strings.Repeat(" ", spaces) + term.Paint(cell.Style, shown))
			spaces = 0
		}
		spaces += widths[i] - utf8.RuneCountInString(shown) + gap
	}
	return text.String()
}

// fit makes columns narrower until a line fits a width: first the widest of
// those that give way, then the last ones, down to nothing.
func fit(widths []int, giveWay, width int) {
	total := gap * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	soft := widths[len(widths)-giveWay:]
	for ; total > width && giveWay > 0 && slices.Max(soft) > minWidth; total-- {
		soft[slices.Index(soft, slices.Max(soft))]--
	}
	left := width
	for i := range widths {
		widths[i] = max(0, min(widths[i], left))
		left -= widths[i] + gap
	}
}

// Cut cuts a text to a width, and says so by "…".
func Cut(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	if width <= 0 {
		return ""
	}
	return string([]rune(text)[:width-1]) + "…"
}

// Clean takes out of a text what would do something to a terminal, on one line:
// texts of a build come from whoever wrote its Dockerfile.
func Clean(text string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case unicode.IsControl(r) || r == utf8.RuneError:
			return '?'
		default:
			return r
		}
	}, text))
}
