//go:build !failpoints

package failpoint

// Hit kills the process if a test wants it to die here.
func Hit(Name) {}
