// Command testsummary reads the events of `go test -json` from standard input,
// also of several runs one after the other, prints what a person wants to see of
// them, and ends with the line "N passed, N failed, N skipped". It exits with 1
// when a test failed or was skipped, when a package did not build, and when no
// test ran at all: a suite that tested nothing must not look like one that passed.
package main

import (
	"fmt"
	"os"
)

func main() {
	summary := newSummary(os.Stdout)
	if err := summary.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "testsummary:", err)
		os.Exit(1)
	}
	if !summary.finish() {
		os.Exit(1)
	}
}
