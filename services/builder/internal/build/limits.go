package build

import (
	"fmt"
	"regexp"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Bounds of what is kept of a build, whichever entrance it comes through. The Build
// API's contract is stricter in places.
const (
	// MaxTags is how many names a build may give to its image.
	MaxTags     = 1024 // 16 outputs of 64 tags
	maxTagBytes = 512
)

// validID is what the id of a build may be: the API's calls take no other, and it
// becomes the name of a directory of artifacts.
var validID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// CheckID returns an INVALID_ARGUMENT fault for an id of a client that no call could
// name.
func CheckID(id string) error {
	if validID.MatchString(id) {
		return nil
	}
	return fault.Invalid("ref", shown(id), "is not the id of a build", `use at most 128 letters, digits, ".", "_" and "-"`)
}

// checkTags returns an INVALID_ARGUMENT fault when a build has more or longer names
// than a record may hold. The store writes them with each of its commits.
func checkTags(tags []string) error {
	if len(tags) > MaxTags {
		return fault.Invalid("tags", "", fmt.Sprintf("are %d, and a build may have %d", len(tags), MaxTags),
			"push fewer names in one build")
	}
	for _, tag := range tags {
		if len(tag) > maxTagBytes {
			return fault.Invalid("tags", shown(tag), fmt.Sprintf("has %d bytes, and a name may have %d", len(tag), maxTagBytes),
				"use a shorter name")
		}
	}
	return nil
}

// shown returns as much of a name that a caller chose as a message quotes.
func shown(name string) string {
	const most = 64
	if len(name) > most {
		return name[:most] + "…"
	}
	return name
}
