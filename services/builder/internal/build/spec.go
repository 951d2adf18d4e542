// Package build is the domain of the builder: what a build is, what happens in
// it, and how it is taken from its coming to its one end.
package build

import (
	"regexp"
	"time"
)

// Spec is a whole build, checked: what goes in, how it is built, what comes out.
type Spec struct {
	Project         string             // never empty
	Caller          string             // identity of who asked for it, set before the solve; empty: none
	Context         Context            // exactly one kind set, or none with Definition
	NamedContexts   map[string]Context // further ones, by the name that the Dockerfile uses
	Dockerfile      Dockerfile         // path or text
	Target          string             // empty: the last stage
	BuildArgs       map[string]string  // values of ARGs
	Labels          map[string]string  // labels of the image
	Annotations     map[string]string  // annotations of the image manifest
	Platforms       []string           // normalised; empty: the daemon's own
	Secrets         []Secret           // in memory only
	SSHKeys         []SSHKey           // in memory only
	Outputs         []Output           // empty: the result stays in the cache
	Cache           Cache
	Attestations    Attestations
	NoCache         bool              // run every step again
	NoCacheStages   []string          // run these stages again
	Pull            bool              // ask the registry for base images again
	ExtraHosts      map[string]string // name to IP address
	Network         string            // BuildKit's name: "sandbox", "none", "host"; empty: its default
	ShmSize         int64             // bytes; 0: the daemon's default
	Ulimits         []Ulimit
	Entitlements    []string // BuildKit's names, for example "network.host"
	Frontend        Frontend
	Definition      []byte // a pb.Definition, in place of a context and a Dockerfile
	Timeout         time.Duration
	Priority        int    // -1 low, 0 normal, 1 high
	SourcePolicy    []byte // BuildKit's source policy, as JSON; empty: none
	SourceDateEpoch *int64 // seconds since 1970
	MaxAttempts     int    // 0 and 1: a single one
}

// Tags returns the references that the build pushes to, each once.
func (s Spec) Tags() []string {
	var all []string
	seen := make(map[string]bool)
	for _, out := range s.Outputs {
		if out.Registry == nil {
			continue
		}
		for _, tag := range out.Registry.Tags {
			if !seen[tag] {
				seen[tag] = true
				all = append(all, tag)
			}
		}
	}
	return all
}

// Sensitive returns what must never be shown or stored of the build.
func (s Spec) Sensitive() [][]byte {
	var all [][]byte
	for _, secret := range s.Secrets {
		all = append(all, secret.Value)
	}
	for _, key := range s.SSHKeys {
		all = append(all, key.PEM)
	}
	return all
}

// HasSecrets reports whether the build has anything that must never be shown.
func (s Spec) HasSecrets() bool { return len(s.Secrets)+len(s.SSHKeys) > 0 }

// Contexts returns the context and all named contexts, by the field of the
// request that they stood in.
func (s Spec) Contexts() map[string]Context {
	all := make(map[string]Context, 1+len(s.NamedContexts))
	if s.Context != (Context{}) {
		all["spec.context"] = s.Context
	}
	for name, c := range s.NamedContexts {
		all[`spec.named_contexts["`+name+`"]`] = c
	}
	return all
}

// Context is the files that a build may read. Exactly one field is set.
type Context struct {
	Inline    *InlineContext
	Directory *DirectoryContext
	Git       *GitContext
	HTTP      *HTTPContext
	Uploaded  *UploadedContext
	OCILayout *OCILayoutContext
	Image     *ImageContext
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

// HTTPContext is an archive that the builder fetches.
type HTTPContext struct {
	URL    string
	Digest string // "sha256:…" of the bytes; empty: not checked
}

// UploadedContext is a context that was uploaded before.
type UploadedContext struct {
	Digest string // of its content
}

// OCILayoutContext is an OCI image layout of this host, not yet opened.
type OCILayoutContext struct {
	Path   string // absolute, clean
	Digest string // of a manifest or index in it
}

// ImageContext is the root file system of an image.
type ImageContext struct {
	Reference string // in full
}

// Dockerfile is the path of a Dockerfile in the context or, when Inline is not
// empty, its text.
type Dockerfile struct {
	Path   string
	Inline string
}

// Secret is a secret of a build. It must never be logged or stored.
type Secret struct {
	ID    string
	Value []byte
}

// SSHKey is a private key of a build. It must never be logged or stored.
type SSHKey struct {
	ID  string // never empty
	PEM []byte
}

// Output says what to do with the result. Exactly one field is set.
type Output struct {
	Registry *RegistryOutput
	Archive  *ArchiveOutput
	Local    *LocalOutput
}

// RegistryOutput pushes the image.
type RegistryOutput struct {
	Tags        []string // full references, at least one
	Compression string   // BuildKit's name; empty: its default
}

// ArchiveOutput keeps the image as an archive.
type ArchiveOutput struct {
	OCI      bool // a tar of an OCI layout, rather than what `docker load` reads
	Artifact string
	Tags     []string // full references
}

// LocalOutput keeps the files of the result as a tar.
type LocalOutput struct {
	Artifact string
}

// Cache says where cached steps come from and go to, besides the daemon's own
// cache.
type Cache struct {
	Imports []CacheEntry
	Exports []CacheEntry
	// Scope is the tag of the first export when the build's own nature chose it; empty
	// when the request names one.
	Scope string
}

// CacheEntry is one place of cached steps, in BuildKit's own terms.
type CacheEntry struct {
	Type       string
	Attributes map[string]string
}

// Attestations says which statements are attached to the image.
type Attestations struct {
	Provenance    string // "min", "max"; empty: none
	SBOM          bool
	SBOMGenerator string // empty: BuildKit's default
}

// Ulimit is a limit of processes in RUN steps.
type Ulimit struct {
	Name       string
	Soft, Hard int64
}

// Frontend says how the Dockerfile is read.
type Frontend struct {
	Name       string // "dockerfile.v0" or "gateway.v0"; empty: dockerfile.v0
	Attributes map[string]string
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
