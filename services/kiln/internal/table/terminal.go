package table

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Terminal is what an output can do. The zero value is no terminal: a file or a
// pipe.
type Terminal struct {
	// Width in columns. 0: no bound.
	Width int
	// Colour says that the output shows colours.
	Colour bool
}

// TerminalOf asks an output what it is. NO_COLOR and TERM=dumb are heeded.
func TerminalOf(w io.Writer) Terminal {
	f, ok := w.(*os.File)
	if !ok {
		return Terminal{}
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ) //nolint:gosec // descriptors are small
	if err != nil {
		return Terminal{}
	}
	return Terminal{Width: int(size.Col), Colour: os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

// Paint gives a text a style, on outputs that show it.
func (t Terminal) Paint(style Style, text string) string {
	if !t.Colour || style == Plain || text == "" {
		return text
	}
	return "\x1b[" + string(style) + "m" + text + "\x1b[0m"
}
