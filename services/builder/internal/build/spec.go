// Package build is the domain of the builder: what a build is, what happens in
// it, and how it is taken from its coming to its one end.
package build

import (
	"regexp"
	"time"
)

// Spec is a whole build, checked: what goes in, how it is built, what comes out.
type Spec struct {
	Project       string            // never empty
	Context       Context           // exactly one kind set
	Dockerfile    Dockerfile        // path or text
	Target        string            // empty: the last stage
	BuildArgs     map[string]string // values of ARGs
	Labels        map[string]string // labels of the image
	Platforms     []string          // normalised; empty: the daemon's own
	Push          *Push             // nil: the result stays in the cache
	Cache         Cache
	NoCache       bool     // run every step again
	NoCacheStages []string // run these stages again
	Pull          bool     // ask the registry for base images again
	Timeout       time.Duration
}

// Context is the files that a build may read. Exactly one field is set.
type Context struct {
	Inline    *InlineContext
	Directory *DirectoryContext
	Git       *GitContext
}

// InlineContext holds files that stood in the request.
type InlineContext struct {
	Files []File // sorted by path, no path within another
}

// File is one file of an inline context.
type File struct {
	Path    string // relative, clean, "/" between names
	Content []byte
	Mode    uint32 // permission bits
}

// DirectoryContext is a directory of this host, not yet opened.
type DirectoryContext struct {
	Path string // absolute, clean
}

// GitContext is a commit of a git repository, fetched by the daemon.
type GitContext struct {
	URL    string
	Ref    string // empty: the default branch
	Subdir string // empty: the root
}

// Dockerfile is the path of a Dockerfile in the context or, when Inline is not
// empty, its text.
type Dockerfile struct {
	Path   string
	Inline string
}

// Push names where the image goes.
type Push struct {
	Tags        []string // full references, at least one
	Compression string   // BuildKit's name; empty: its default
	// Outputs holds the tags of each output of the request, in its order.
	Outputs [][]string
}

// Cache says where cached steps come from and go to, besides the daemon's own
// cache.
type Cache struct {
	Imports []CacheRef
	Export  *CacheRef
	Inline  bool // write the cache into the pushed image
}

// CacheRef is a cache in a registry.
type CacheRef struct {
	Ref string
}

// DefaultProject is the project of builds that name none.
const DefaultProject = "default"

var projectName = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*$`)

// ValidProject reports whether name can be a project: at most 63 lower-case
// letters and digits with single ".", "_" or "-" between them, so that it can be
// a component of a repository name.
func ValidProject(name string) bool {
	return len(name) <= 63 && projectName.MatchString(name)
}
