// Command canary holds a word in its memory until it is aborted. Its argument says
// whether it guards it.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/kilnbuild/kiln/pkg/service"
)

func main() {
	if os.Args[1] == "guarded" {
		if err := service.NoCoreDumps(); err != nil {
			panic(err)
		}
	}
	canary := strings.Repeat("canary-", 3) // The word is nowhere in the binary.
	// What metrics of the process read must still be there.
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	fmt.Println("ready", len(open))
	// Whoever aborts it holds the other end.
	if _, err := os.Stdin.Read(make([]byte, 1)); err == nil {
		fmt.Println(canary)
	}
}
