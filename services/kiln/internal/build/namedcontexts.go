package build

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/ociindex"
	bkbuild "github.com/moby/buildkit/cmd/buildctl/build"
	"github.com/moby/buildkit/identity"
	"github.com/opencontainers/go-digest"
)

// namedContext is one --build-context.
type namedContext struct{ name, value string }

func parseNamedContexts(flags []string) ([]namedContext, error) {
	var all []namedContext
	for _, text := range flags {
		if text == "" {
			continue
		}
		name, value, ok := strings.Cut(text, "=")
		if !ok {
			return nil, fmt.Errorf("--build-context is %q; write it like NAME=DIRECTORY, NAME=URL or NAME=docker-image://IMAGE", text)
		}
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return nil, fmt.Errorf("--build-context %q: the name %q is not one: %w", text, name, err)
		}
		name = strings.TrimSuffix(reference.FamiliarString(named), ":latest")
		// The last one of a name counts.
		all = slices.DeleteFunc(all, func(c namedContext) bool { return c.name == name })
		all = append(all, namedContext{name, value})
	}
	return all, nil
}

// setNamedContexts says in BuildKit's terms what --build-context names.
func (o *options) setNamedContexts(opt *client.SolveOpt, mount func(name, dir string) error) error {
	attrs := opt.FrontendAttrs
	if len(o.contexts) > 0 {
		addFrontendCaps(attrs, "moby.buildkit.frontend.contexts+forward")
	}
	for _, c := range o.contexts {
		switch {
		case isRemote(c.value), strings.HasPrefix(c.value, "docker-image://"):
			attrs["context:"+c.name] = c.value
			addCaps(attrs, c.value, "moby.buildkit.frontend.gitquerystring+forward")
		case strings.HasPrefix(c.value, layoutPrefix):
			value, err := addLayout(opt, c.value)
			if err != nil {
				return fmt.Errorf("--build-context %s=%s: %w", c.name, c.value, err)
			}
			attrs["context:"+c.name] = value
		case strings.HasPrefix(c.value, "target:"):
			return fmt.Errorf("--build-context %s=%s names a target of bake; build that target first, and name its image with docker-image://", c.name, c.value)
		default:
			info, err := os.Stat(c.value)
			if err == nil && !info.IsDir() {
				err = fmt.Errorf("%s is not a directory", c.value)
			}
			if err != nil {
				return fmt.Errorf("--build-context %s: %w", c.name, err)
			}
			local := c.name
			if local == "context" || local == "dockerfile" {
				local = "_" + local // These are the build's own.
			}
			if err := mount(local, c.value); err != nil {
				return err
			}
			attrs["context:"+c.name] = "local:" + local
			path, err := filepath.Abs(c.value)
			if err != nil {
				return err
			}
			attrs["sharedkey:localdir:"+c.name] = o.keyOf(path)
		}
	}
	return nil
}

const layoutPrefix = "oci-layout://"

// addLayout lends the build the OCI layout at oci-layout://PATH[:TAG][@DIGEST], and
// returns the name that the build calls it by.
func addLayout(opt *client.SolveOpt, value string) (string, error) {
	path := strings.TrimPrefix(value, layoutPrefix)
	var sum digest.Digest
	if at := strings.LastIndex(path, "@"); at >= 0 && reference.DigestRegexp.MatchString(path[at+1:]) {
		path, sum = path[:at], digest.Digest(path[at+1:])
	}
	tag := ""
	if at := strings.LastIndex(path, ":"); at >= 0 && reference.TagRegexp.FindString(path[at+1:]) == path[at+1:] && path[at+1:] != "" {
		path, tag = path[:at], path[at+1:]
	}
	if tag == "" && sum == "" {
		tag = "latest"
	}
	if sum == "" {
		index := ociindex.NewStoreIndex(path)
		desc, err := index.Get(tag)
		if err == nil && desc == nil {
			desc, err = index.GetSingle()
		}
		switch {
		case err != nil:
			return "", err
		case desc == nil:
			return "", fmt.Errorf("%s has no image with the tag %s", path, tag)
		}
		sum = desc.Digest
	}
	id := identity.NewID()
	stores, err := bkbuild.ParseOCILayout([]string{id + "=" + path})
	if err != nil {
		return "", err
	}
	if opt.OCIStores == nil {
		opt.OCIStores = stores
	} else {
		opt.OCIStores[id] = stores[id]
	}
	name := layoutPrefix + id
	if tag != "" {
		name += ":" + tag
	}
	return name + "@" + sum.String(), nil
}
