// Package cachescope names the scopes of a project's cache in the registry: tags of
// the repository CACHE_REPOSITORY/PROJECT.
//
// A cache export replaces what its tag named before. So builds that share few
// steps (for other platforms, of other targets, of other images) write to scopes of
// their own by default, and read the more general ones as well.
package cachescope

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Shared is the scope of a build of the last stage for the daemon's own platform.
// All builds of the project read it.
const Shared = "latest"

// Build is what tells the caches of one project apart.
type Build struct {
	// Image is the repository of the image without its registry. Empty, or the
	// project's name: the project's main image.
	Image string
	// Project is the name of the project.
	Project string
	// Target is the stage. Empty: the last one.
	Target string
	// Platforms are those that were asked for. Empty: the daemon's own.
	Platforms []string
}

// Default returns the scope that a build writes to by default.
func (b Build) Default() string {
	var parts []string
	hash := sha256.New()
	add := func(kind, part string) {
		parts = append(parts, part)
		_, _ = fmt.Fprintf(hash, "%s=%q\n", kind, part) // A hash takes all.
	}
	if b.Image != "" && b.Image != b.Project {
		add("image", b.Image)
	}
	if b.Target != "" {
		add("target", b.Target)
	}
	platforms := slices.Sorted(slices.Values(b.Platforms))
	for _, platform := range slices.Compact(platforms) {
		add("platform", platform)
	}
	if len(parts) == 0 {
		return Shared
	}
	return tag(parts, hash.Sum(nil))
}

// Imports returns the scopes that a build reads by default, the nearest first.
func (b Build) Imports() []string {
	noTarget, noImage := b, b
	noTarget.Target = ""
	noImage.Image, noImage.Target = "", ""
	var all []string
	for _, scope := range []string{b.Default(), noTarget.Default(), noImage.Default(), Shared} {
		if !slices.Contains(all, scope) {
			all = append(all, scope)
		}
	}
	return all
}

var notOfTag = regexp.MustCompile(`[^A-Za-z0-9_.]+`)

// maxTag is the longest readable part of a tag; with the hash it fits into 128 bytes.
const maxTag = 100

// tag returns a tag for the parts. The hash tells apart what the characters of a
// tag cannot.
func tag(parts []string, sum []byte) string {
	text := strings.Trim(notOfTag.ReplaceAllString(strings.Join(parts, "-"), "-"), "-.")
	text = strings.Trim(text[:min(len(text), maxTag)], "-.")
	if text == "" {
		text = "scope"
	}
	return text + "-" + hex.EncodeToString(sum[:4])
}
