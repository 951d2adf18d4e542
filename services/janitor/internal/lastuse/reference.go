package lastuse

import (
	"net"
	"regexp"
	"strings"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

// Reference is an image reference without its registry.
type Reference struct {
	Repository string
	Tag        string         // "latest" when it has neither
	Digest     content.Digest // empty: none
}

// Name is that of what it refers to.
func (r Reference) Name() Name {
	if r.Digest != "" {
		return ByDigest(r.Digest)
	}
	return ByTag(r.Tag)
}

// repositoryForm and tagForm are those of the OCI distribution specification, "Pulling
// manifests".
var (
	repositoryForm = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagForm        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

// Registry knows its names.
type Registry struct {
	Address string
	Names   []string // other ones
}

// Parse reads a reference in full. One of another registry, or that is none, is an
// INVALID_ARGUMENT fault of the field.
func (r Registry) Parse(field, text string) (Reference, error) {
	host, rest, ok := strings.Cut(text, "/")
	if !ok || !r.is(host) {
		return Reference{}, fault.Invalid(field, text, "is not of the registry "+r.Address, "write it in full, such as "+r.Address+"/cache/web:main; other names of the registry stand in registry_names")
	}
	rest, digest, digested := strings.Cut(rest, "@")
	out := Reference{Repository: rest, Digest: content.Digest(digest), Tag: "latest"}
	if i := strings.LastIndex(rest, ":"); i >= 0 {
		out.Repository, out.Tag = rest[:i], rest[i+1:]
	}
	if !repositoryForm.MatchString(out.Repository) || !tagForm.MatchString(out.Tag) || digested && !out.Digest.Valid() {
		return Reference{}, fault.Invalid(field, text, "is no image reference", "write it like "+r.Address+"/cache/web:main")
	}
	return out, nil
}

// is reports whether a host and port are those of the registry. All names of the loopback
// interface are one.
func (r Registry) is(host string) bool {
	for _, name := range append([]string{r.Address}, r.Names...) {
		if canonical(name) == canonical(host) {
			return true
		}
	}
	return false
}

func canonical(hostport string) string {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		host, port = hostport, ""
	}
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
		host = "loopback"
	}
	return strings.ToLower(host) + ":" + port
}
