package buildkit

import (
	"strconv"
	"strings"

	"github.com/distribution/reference"
)

// EntitlementNames are rights without their parameters: "device" of
// "device=vendor.com/class".
func EntitlementNames(wanted []string) []string {
	names := make([]string, len(wanted))
	for i, w := range wanted {
		names[i], _, _ = strings.Cut(w, "=")
	}
	return names
}

// FrontendImage returns the image that reads the Dockerfile, by the frontend's name and
// attributes: that of gateway.v0, or the one by which the argument BUILDKIT_SYNTAX
// replaces the daemon's own frontend. Empty: the daemon's own.
func FrontendImage(name string, attrs map[string]string) string {
	switch name {
	case gatewayFrontend:
		return attrs["source"]
	case "", dockerfileFrontend:
		if _, chosen := attrs[noSyntax]; chosen {
			return ""
		}
		image, _, _ := strings.Cut(strings.TrimSpace(attrs["build-arg:BUILDKIT_SYNTAX"]), " ")
		return image
	default:
		return ""
	}
}

// Pushes are the repositories that an exporter pushes to.
func Pushes(attrs map[string]string) (all []string) {
	value, given := attrs["push"]
	if no, err := strconv.ParseBool(value); !given || err == nil && !no {
		return nil // BuildKit takes an empty value for true
	}
	for name := range strings.SplitSeq(attrs["name"], ",") {
		all = append(all, repository(name))
	}
	return all
}

// CacheRepository is the repository that a cache is written to; none for caches elsewhere.
func CacheRepository(kind string, attrs map[string]string) []string {
	if kind != "registry" {
		return nil
	}
	return []string{repository(attrs["ref"])}
}

// insecure reports whether attributes have a registry used without TLS, or without a check
// of its certificate. BuildKit takes an empty value for true.
func insecure(attrs map[string]string) bool {
	value, given := attrs["registry.insecure"]
	yes, err := strconv.ParseBool(value)
	return given && (err != nil || yes)
}

// registryOf returns the host of a repository's registry; empty when the repository is none
// that can be read, such as one that the frontend is to name.
func registryOf(repository string) string {
	named, err := reference.ParseNormalizedNamed(repository)
	if err != nil {
		return ""
	}
	return reference.Domain(named)
}

// repository is that of a reference, in full; what is none stays as it is, for BuildKit to
// refuse.
func repository(ref string) string {
	named, err := reference.ParseNormalizedNamed(strings.TrimSpace(ref))
	if err != nil {
		return ref
	}
	return named.Name()
}
