// Package lab runs the real parts of a Kiln installation on one machine, for
// tests, benchmarks and the demo: buildkitd, a CNCF distribution registry, the
// three services, and `kiln up`.
//
// Each part is a process of its own, in its own process group, on a free port
// or a unix socket in a temporary directory. It dies with the program that
// started it, whatever kills that program, and Lab.Close leaves no process, no
// container, no mount and no file behind.
//
// The package knows nothing of testing: it returns errors that hold the end of
// the log of the part that failed. See labtest for tests.
package lab
