package policy

import (
	"cmp"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/pkg/fault"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// objectStores are BuildKit's types of caches in object stores.
var objectStores = []string{"s3", "azblob", "gha"}

// Cache returns a POLICY_DENIED fault unless a cache, by BuildKit's type and with its
// attributes, is in a registry, in a directory, in the image itself, or in an object
// store that is granted.
func (p *Policy) Cache(kind string, attrs map[string]string) error {
	switch kind {
	case "", "registry", "local", "inline":
		return nil
	}
	granted := func(g *configv1.ObjectCache) bool { return grants(g, kind, attrs) }
	if p != nil && slices.ContainsFunc(p.objectCaches, granted) {
		return nil
	}
	if !slices.Contains(objectStores, kind) {
		err := fault.New(fault.PermissionDenied, "POLICY_DENIED", fmt.Sprintf("unknown cache type %q", kind), "name one of registry, local, inline, "+strings.Join(objectStores, ", "))
		err.Value = kind
		return err
	}
	where := cmp.Or(attrs["endpoint_url"], attrs["account_url"], attrs["url_v2"], attrs["url"])
	shown := strings.TrimSpace(fmt.Sprintf("%s %s %s", kind, cmp.Or(attrs["bucket"], attrs["container"]), hostOf(where)))
	return denied(fmt.Sprintf("the object store cache %q is not granted", shown), shown, "policy.object_caches")
}

// label is what the name of a bucket or region may consist of: each becomes part of a
// host name.
var label = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)

// grants reports whether a grant covers a cache. The attributes that say where a cache
// is must be set: where they are not, the daemon takes its own environment's.
func grants(g *configv1.ObjectCache, kind string, attrs map[string]string) bool {
	if g.GetType() != kind {
		return false
	}
	switch kind {
	case "s3":
		where := attrs["endpoint_url"]
		ofAWS := where == "" && len(g.GetEndpoints()) == 0
		return label.MatchString(attrs["region"]) && bucket(g, attrs["bucket"]) && (ofAWS || endpoint(g, where))
	case "azblob":
		return bucket(g, attrs["container"]) && endpoint(g, attrs["account_url"])
	case "gha":
		v1, v2 := attrs["url"], attrs["url_v2"]
		return v1+v2 != "" && (v1 == "" || endpoint(g, v1)) && (v2 == "" || endpoint(g, v2))
	default:
		return false
	}
}

func bucket(g *configv1.ObjectCache, name string) bool {
	if !label.MatchString(name) {
		return false
	}
	if len(g.GetBuckets()) == 0 {
		return len(g.GetEndpoints()) > 0
	}
	return slices.ContainsFunc(g.GetBuckets(), func(pattern string) bool {
		prefix, wild := strings.CutSuffix(pattern, "*")
		return pattern == name || wild && strings.HasPrefix(name, prefix)
	})
}

// endpoint reports whether a URL is one of a grant's, or below one.
func endpoint(g *configv1.ObjectCache, raw string) bool {
	u, err := url.Parse(raw)
	if err != nil || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Host == "" {
		return false
	}
	return slices.ContainsFunc(g.GetEndpoints(), func(granted string) bool {
		want, err := url.Parse(granted)
		return err == nil && u.Scheme == want.Scheme && strings.EqualFold(u.Host, want.Host) && below(want.Path, u.Path)
	})
}

// below reports whether a path is a directory's, or in it.
func below(dir, name string) bool {
	dir, name = path.Clean("/"+dir), path.Clean("/"+name)
	return dir == "/" || name == dir || strings.HasPrefix(name, dir+"/")
}

// hostOf returns what may be shown of a URL.
func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	return u.Host
}
