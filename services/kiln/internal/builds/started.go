package builds

import (
	"fmt"
	"io"
)

// PrintStarted says that a build was started that goes on by itself: its id to
// programs, and what to do with it to people.
func PrintStarted(out, errOut io.Writer, id string) error {
	if _, err := fmt.Fprintln(out, id); err != nil {
		return err
	}
	_, err := fmt.Fprintf(errOut, "follow it: kiln builds watch %s\n", id)
	return err
}
