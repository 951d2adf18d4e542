// Package clock tells the time that ages are counted to.
//
// In a build with the tag "failpoints", the variable KILN_CLOCK moves it: with
// KILN_CLOCK=47h59m, what is a minute old is of two days. In any other build it is
// the time of the host.
package clock
