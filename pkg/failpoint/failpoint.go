// Package failpoint marks places where a test may kill the process, to see what a
// kill -9 at that moment leaves behind.
//
// In a build with the tag "failpoints", the variable KILN_FAILPOINT says where:
// "store.commit" kills at the first hit of that place, "store.commit:3" at the
// third. In any other build, Hit is nothing at all. Package find lists the places.
package failpoint

// Name names a place: the package and what happens there, as in "store.commit".
// One name is one place.
type Name string
