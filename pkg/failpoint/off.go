//go:build !failpoints

// Package failpoint has places where a test kills the process.
package failpoint

// Name names a place.
type Name string

// Hit does nothing in a normal build.
func Hit(Name) {}
