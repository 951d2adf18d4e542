package contextstore

import (
	"path"
	"path/filepath"
	"strings"
)

// cleanName checks the name of an entry and returns it in the form in which it is
// stored: relative and clean. It is "." for the context's root.
func cleanName(name string, limits Limits) (string, error) {
	switch {
	case len(name) > limits.MaxPathBytes:
		return "", over("max_path_bytes", "the archive has a path of more bytes than a context's may have")
	case name == "":
		return "", refused(name, "has no name", "give every entry a name")
	case strings.ContainsRune(name, 0):
		return "", refused(name, "has a NUL byte in its name", "rename it")
	case strings.HasPrefix(name, "/"):
		return "", refused(name, "is absolute", "make the tar with names relative to the context, as tar -C <context> -c . does")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", refused(name, `has ".." in its name`, "make the tar with names below the context, as tar -C <context> -c . does")
		}
	}
	return path.Clean(name), nil
}

// checkTarget checks the target of a symbolic link, as it reads: what the links
// on its way lead to is the daemon's business, which follows them within the
// context.
func checkTarget(name, target string, limits Limits) error {
	switch {
	case target == "":
		return refused(name, "is a symbolic link to nothing", "give the link a target")
	case len(target) > limits.MaxPathBytes:
		return over("max_path_bytes", "the archive has a symbolic link with a target of more bytes than a path may have")
	case strings.ContainsRune(target, 0):
		return refused(name, "is a symbolic link to a name with a NUL byte", "give the link another target")
	case strings.HasPrefix(target, "/"):
		return refused(name, "is a symbolic link to an absolute path", "make the link relative")
	case !filepath.IsLocal(path.Join(path.Dir(name), target)):
		return refused(name, "is a symbolic link that leads out of the context", "have the link lead to a file of the context")
	}
	return nil
}
