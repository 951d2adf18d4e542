// Package cachescope names the part of a project's cache that a build reads and
// writes.
//
// A cache in a registry is one tag, and each export replaces it. Builds whose steps
// differ need tags of their own, or each drops the steps of the one before.
package cachescope

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
)

// Build is what tells the caches of one project apart.
type Build struct {
	// Platforms of the build, such as "linux/amd64". None: the daemon's own.
	Platforms []string
	// Target is the stage. Empty: the last one.
	Target string
	// Image is the repository that the build pushes to, without its registry, such as
	// "a/web". Empty: it pushes nothing, or the project's own name.
	Image string
	// Dockerfile is its path in the context. Empty: the usual one.
	Dockerfile string
	// Subdir is the directory of the repository that the context is. Empty: its root.
	Subdir string
}

// maxReadable bounds the readable part of a name, in bytes; a tag has at most 128.
const maxReadable = 100

var notOfTag = regexp.MustCompile(`[^A-Za-z0-9_]+`)

// Name returns the scope of a build, a valid tag: "linux-amd64" for the last stage of
// a project's one image, and "linux-amd64.test.a-web.1f0c3a52" for the stage test of
// a/web. The digits stand for what the name cannot show, so that no two builds that
// differ have the same scope.
func (b Build) Name() string {
	platforms := make([]string, len(b.Platforms))
	for i, p := range b.Platforms {
		platforms[i] = readable(p)
	}
	name := strings.Join(platforms, "_")
	if name == "" {
		name = "native"
	}
	rest := []string{b.Target, b.Image, b.Dockerfile, b.Subdir}
	plain := true
	for _, part := range rest {
		if part != "" {
			plain = false
			name += "." + readable(part)
		}
	}
	if plain && len(name) <= maxReadable {
		return name
	}
	sum := sha256.Sum256([]byte(strings.Join(append(rest, b.Platforms...), "\x00")))
	return name[:min(len(name), maxReadable)] + "." + hex.EncodeToString(sum[:4])
}

func readable(part string) string { return strings.Trim(notOfTag.ReplaceAllString(part, "-"), "-") }
