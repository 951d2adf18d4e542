package grpcapi

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/distribution/reference"

	"github.com/kilnbuild/kiln/pkg/cachescope"
	"github.com/kilnbuild/kiln/pkg/fault"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// cache says what the cache policy means.
func (t Translator) cache(spec *build.Spec, in *builderv1.BuildSpec) error {
	policy := in.GetCache()
	mode := policy.GetMode()
	if mode != builderv1.CacheMode_CACHE_MODE_REGISTRY && (policy.GetScope() != "" || len(policy.GetFallbackScopes()) > 0) {
		return fault.Invalid("spec.cache.scope", policy.GetScope(), "is for mode REGISTRY only", "set spec.cache.mode to CACHE_MODE_REGISTRY, or leave the scopes out")
	}
	if mode != builderv1.CacheMode_CACHE_MODE_EXPLICIT && len(policy.GetImports())+len(policy.GetExports()) > 0 {
		return fault.Invalid("spec.cache.imports", "", "imports and exports are for mode EXPLICIT only", "leave them out")
	}
	switch mode {
	case builderv1.CacheMode_CACHE_MODE_REGISTRY:
		spec.Cache = t.registryCache(spec, policy)
	case builderv1.CacheMode_CACHE_MODE_INLINE:
		return inlineCache(spec)
	case builderv1.CacheMode_CACHE_MODE_NONE:
		spec.NoCache = true
	case builderv1.CacheMode_CACHE_MODE_EXPLICIT:
		return explicitCache(spec, policy)
	}
	return nil
}

// registryCache is the cache of a project's repository. Where the request names no
// scope, what the build is chooses it, and the scopes of its neighbours are read, too.
func (t Translator) registryCache(spec *build.Spec, policy *builderv1.CachePolicy) build.Cache {
	repository := t.CacheRepository + "/" + spec.Project
	scope := policy.GetScope()
	from := slices.Clone(policy.GetFallbackScopes())
	if scope == "" {
		scope = scopeOf(spec)
		if t.OtherScopes != nil {
			from = append(from, t.OtherScopes(repository, scope)...)
		}
	}
	own := registryEntry(repository + ":" + scope)
	export := build.CacheEntry{Type: "registry", Attributes: maps.Clone(own.Attributes)}
	export.Attributes["mode"] = "max"
	export.Attributes["image-manifest"] = "true"
	export.Attributes["oci-mediatypes"] = "true"
	cache := build.Cache{Exports: []build.CacheEntry{export}, Imports: []build.CacheEntry{own}}
	if policy.GetScope() == "" {
		cache.Scope = scope
	}
	for i, other := range from {
		if other != scope && !slices.Contains(from[:i], other) {
			cache.Imports = append(cache.Imports, registryEntry(repository+":"+other))
		}
	}
	return cache
}

// scopeOf names the cache of a build by what tells it from other builds of its project.
func scopeOf(spec *build.Spec) string {
	b := cachescope.Build{Platforms: spec.Platforms, Target: spec.Target}
	if tags := spec.Tags(); len(tags) > 0 {
		if named, err := reference.ParseNormalizedNamed(tags[0]); err == nil && reference.Path(named) != spec.Project {
			b.Image = reference.Path(named)
		}
	}
	if name := spec.Dockerfile.Path; name != "Dockerfile" {
		b.Dockerfile = name
	}
	if git := spec.Context.Git; git != nil {
		b.Subdir = git.Subdir
	}
	return b.Name()
}

// inlineCache keeps the cache in the pushed image, and reads it from the one that
// was pushed before.
func inlineCache(spec *build.Spec) error {
	tags := spec.Tags()
	if len(tags) == 0 {
		return fault.Invalid("spec.cache.mode", builderv1.CacheMode_CACHE_MODE_INLINE.String(), "keeps the cache in a pushed image, and the build pushes none",
			"add a registry output, or use CACHE_MODE_REGISTRY")
	}
	spec.Cache.Exports = []build.CacheEntry{{Type: "inline"}}
	for _, tag := range tags {
		spec.Cache.Imports = append(spec.Cache.Imports, registryEntry(tag))
	}
	return nil
}

func registryEntry(ref string) build.CacheEntry {
	return build.CacheEntry{Type: "registry", Attributes: map[string]string{"ref": ref}}
}

func explicitCache(spec *build.Spec, policy *builderv1.CachePolicy) error {
	for i, entry := range policy.GetImports() {
		field := fmt.Sprintf("spec.cache.imports[%d]", i)
		if entry.GetType() == "inline" {
			return fault.Invalid(field+".type", "inline", "cannot be read from", `read it as type "registry", with the image as its "ref"`)
		}
		if err := cacheEntry(field, entry, "src"); err != nil {
			return err
		}
		spec.Cache.Imports = append(spec.Cache.Imports, entryOf(entry))
	}
	for i, entry := range policy.GetExports() {
		field := fmt.Sprintf("spec.cache.exports[%d]", i)
		if entry.GetType() == "inline" && !slices.ContainsFunc(spec.Outputs, isImage) {
			return fault.Invalid(field+".type", "inline", "keeps the cache in an image, and the build has no output that is one", "add a registry output")
		}
		if err := cacheEntry(field, entry, "dest"); err != nil {
			return err
		}
		for _, before := range spec.Cache.Exports {
			if before.Type == entry.GetType() && maps.Equal(before.Attributes, entry.GetAttributes()) {
				return fault.Invalid(field, entry.GetType(), "is named twice", "name each once")
			}
		}
		spec.Cache.Exports = append(spec.Cache.Exports, entryOf(entry))
	}
	return nil
}

func entryOf(in *builderv1.CacheEntry) build.CacheEntry {
	return build.CacheEntry{Type: in.GetType(), Attributes: maps.Clone(in.GetAttributes())}
}

// credentials are the attributes by which BuildKit's caches are given secrets. A
// request is stored, and they would be with it.
var credentials = []string{"secret_access_key", "session_token", "token", "ghtoken"}

// cacheEntry checks what BuildKit would overlook, or would say later than now.
// directory is the attribute that holds a local cache's path.
func cacheEntry(field string, in *builderv1.CacheEntry, directory string) error {
	attr := func(name string) (path, value string) {
		return fmt.Sprintf("%s.attributes[%q]", field, name), in.GetAttributes()[name]
	}
	switch in.GetType() {
	case "registry":
		if path, ref := attr("ref"); ref == "" {
			return fault.Invalid(path, "", "is missing", `name a reference, for example "localhost:5000/cache/web:main"`)
		} else if _, err := reference.ParseNormalizedNamed(ref); err != nil {
			return fault.Invalid(path, ref, "is not an image reference: "+err.Error(), `write it like "localhost:5000/cache/web:main"`)
		}
	case "local":
		if path, dir := attr(directory); !filepath.IsAbs(dir) {
			return fault.Invalid(path, dir, "is not an absolute path", "name a directory of the builder's host, below one of its allowed_roots")
		}
	case "inline", "s3", "gha", "azblob":
	default:
		return fault.Invalid(field+".type", in.GetType(), "is not a type of cache", `use "registry", "local", "inline", "s3", "gha" or "azblob"`)
	}
	for _, name := range credentials {
		if path, secret := attr(name); secret != "" {
			return fault.Invalid(path, "", "is a secret, and requests are stored",
				"give the daemon its credentials by its environment or role, or build through the BuildKit gateway on the same port, where nothing of it is stored")
		}
	}
	if path, mode := attr("mode"); mode != "" && mode != "min" && mode != "max" {
		return fault.Invalid(path, mode, "is not a mode", `use "min" or "max"`)
	}
	if path, value := attr("ignore-error"); value != "" {
		if _, err := strconv.ParseBool(value); err != nil {
			return fault.Invalid(path, value, "is neither true nor false", `use "true" or "false"`)
		}
	}
	return nil
}
