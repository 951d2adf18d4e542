package buildkit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/frontend/attestations"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/policy"
)

// Asked is what a solve asks for, as far as the builder's policy and the rules of its
// caller judge it. The Build API and the gateway both make one of each request, so
// that one set of checks holds for both.
type Asked struct {
	Project      string
	Entitlements []string          // BuildKit's names, with parameters
	Frontend     string            // BuildKit's name; empty: the daemon's default, or none
	Attrs        map[string]string // of the frontend
	Exports      []Entry
	CacheImports []Entry
	CacheExports []Entry
	// Hidden reports exporters that only the client's session names.
	Hidden bool
	// Pulls are repositories that are read with the builder's users.
	Pulls []string
}

// Entry is an exporter or a cache in BuildKit's terms.
type Entry struct {
	Type  string
	Attrs map[string]string
}

// Policy says what a build may ask for beyond a plain one. Its errors are
// POLICY_DENIED faults.
type Policy interface {
	// Entitlements checks rights, by BuildKit's names.
	Entitlements(names []string) error
	// Frontend checks a frontend, by BuildKit's name and with its attributes.
	Frontend(name string, attrs map[string]string) error
	// SBOMGenerator checks an image that makes SBOMs; empty is BuildKit's default.
	SBOMGenerator(image string) error
	// Cache checks a cache, by BuildKit's type and with its attributes.
	Cache(kind string, attrs map[string]string) error
	// Insecure checks a registry that is to be used without TLS or a check of its
	// certificate, by its host; empty: the request does not name it.
	Insecure(host string) error
}

// Check holds a request to the builder's policy and to the rules of its caller, which
// ctx carries. Its errors are PERMISSION_DENIED and INVALID_ARGUMENT faults.
func (a Asked) Check(ctx context.Context, policy Policy) error {
	if err := a.Allowed(policy); err != nil {
		return err
	}
	return auth.GrantOf(ctx).Check(a.Use())
}

// maxEntries bounds the cache imports, the cache exports and the exporters of a build,
// each of which the daemon handles by itself. The Build API's contract allows fewer.
const maxEntries = 256

// Allowed holds a request to the builder's policy. The fields of its errors are those
// of BuildSpec, below "spec.".
func (a Asked) Allowed(policy Policy) error {
	if err := policy.Entitlements(EntitlementNames(a.Entitlements)); err != nil {
		return inField("spec.entitlements", err)
	}
	if err := a.allowedFrontend(policy); err != nil {
		return orField("spec.frontend", err)
	}
	if image, named := generator(a.Attrs); named {
		if err := policy.SBOMGenerator(image); err != nil {
			return inField("spec.attestations.sbom_generator", err)
		}
	}
	imports, err := a.imports()
	if err != nil {
		return err
	}
	for field, entries := range map[string][]Entry{
		"spec.cache.imports": imports, "spec.cache.exports": a.CacheExports, "spec.outputs": a.Exports,
	} {
		if len(entries) > maxEntries {
			return fault.Invalid(field, "", fmt.Sprintf("are %d, and a build may have %d", len(entries), maxEntries),
				"name fewer in one build")
		}
	}
	for field, entries := range map[string][]Entry{"imports": imports, "exports": a.CacheExports} {
		for i, entry := range entries {
			if err := policy.Cache(entry.Type, entry.Attrs); err != nil {
				return inField(fmt.Sprintf("spec.cache.%s[%d]", field, i), err)
			}
		}
	}
	return a.allowedRegistries(policy, imports)
}

// allowedRegistries checks the registries that the request would have used insecurely.
func (a Asked) allowedRegistries(policy Policy, imports []Entry) error {
	if a.Hidden { // their attributes cannot be seen
		if err := policy.Insecure(""); err != nil {
			return fault.New(fault.PermissionDenied, "POLICY_DENIED",
				"exporters that only the client's session names cannot be checked for registry.insecure",
				`name the exporters in the request, or ask the operator to add "*" to policy.insecure_registries of the builder`)
		}
	}
	for _, list := range []struct {
		field        string
		entries      []Entry
		repositories func(Entry) []string
	}{
		{"spec.outputs", a.Exports, func(e Entry) []string { return Pushes(e.Attrs) }},
		{"spec.cache.imports", imports, func(e Entry) []string { return CacheRepository(e.Type, e.Attrs) }},
		{"spec.cache.exports", a.CacheExports, func(e Entry) []string { return CacheRepository(e.Type, e.Attrs) }},
	} {
		for i, entry := range list.entries {
			if !insecure(entry.Attrs) {
				continue
			}
			for _, repository := range list.repositories(entry) {
				if err := policy.Insecure(registryOf(repository)); err != nil {
					return inField(fmt.Sprintf("%s[%d]", list.field, i), err)
				}
			}
		}
	}
	return nil
}

// orField gives an error that names no field of the request one.
func orField(field string, err error) error {
	if own, ok := errors.AsType[*fault.Error](err); ok && own.Field != "" {
		return err
	}
	return inField(field, err)
}

func (a Asked) allowedFrontend(policy Policy) error {
	if err := policy.Frontend(a.Frontend, a.Attrs); err != nil {
		return err
	}
	image := FrontendImage(a.Frontend, a.Attrs)
	if image == "" {
		return nil
	}
	if a.Frontend != gatewayFrontend {
		if err := policy.Frontend(gatewayFrontend, map[string]string{"source": image}); err != nil {
			return err
		}
	}
	return replaced(image, a.Attrs)
}

// replaced refuses a named context that has the name of the frontend's image: BuildKit
// would run the context in place of the image that was granted.
func replaced(image string, attrs map[string]string) error {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return nil //nolint:nilerr // the daemon refuses it
	}
	name := strings.TrimSuffix(reference.FamiliarString(named), ":latest")
	for _, context := range slices.Sorted(maps.Keys(attrs)) {
		// A context may be of one platform: "context:name::linux/arm64".
		short, isContext := strings.CutPrefix(context, "context:")
		short, _, _ = strings.Cut(short, "::")
		if !isContext {
			continue
		}
		if other, err := reference.ParseNormalizedNamed(short); err == nil {
			short = strings.TrimSuffix(reference.FamiliarString(other), ":latest")
		}
		if short == name {
			return fault.Invalid(fmt.Sprintf("spec.named_contexts[%q]", name), name,
				"has the name of the frontend's image", "give the context another name")
		}
	}
	return nil
}

// Use returns what the rules of a caller judge.
func (a Asked) Use() auth.Use {
	use := auth.Use{
		Project: a.Project, Entitlements: EntitlementNames(a.Entitlements),
		Frontend: FrontendImage(a.Frontend, a.Attrs), Pulls: a.Pulls,
	}
	if policy.IsDockerfile(use.Frontend) {
		use.Frontend = "" // as by a "# syntax=" line, which only the daemon sees
	}
	for _, e := range a.Exports {
		use.Registries = append(use.Registries, Pushes(e.Attrs)...)
	}
	if a.Hidden {
		use.Registries = append(use.Registries, "exporters of the session")
	}
	for _, e := range a.CacheExports {
		use.Registries = append(use.Registries, CacheRepository(e.Type, e.Attrs)...)
	}
	return use
}

// Attributes of the Dockerfile frontend that hold cache imports; see frontend/dockerui
// of BuildKit.
const (
	attrCacheImports = "cache-imports" // JSON
	attrCacheFrom    = "cache-from"    // references
)

// imports returns the cache imports of a request, those in the frontend's attributes
// included.
func (a Asked) imports() ([]Entry, error) {
	all := slices.Clone(a.CacheImports)
	if raw := a.Attrs[attrCacheImports]; raw != "" {
		var more []Entry
		if err := json.Unmarshal([]byte(raw), &more); err != nil {
			return nil, fault.Invalid(`spec.frontend.attributes["cache-imports"]`, "", "cannot be read: "+err.Error(),
				"send it as BuildKit's own client does")
		}
		all = append(all, more...)
	}
	for ref := range strings.SplitSeq(a.Attrs[attrCacheFrom], ",") {
		if ref != "" {
			all = append(all, Entry{Type: registryCache, Attrs: map[string]string{"ref": ref}})
		}
	}
	return all, nil
}

// generator returns the image that attributes name to make the SBOM. One that is
// not named is the daemon's default.
func generator(attrs map[string]string) (image string, named bool) {
	parsed, err := attestations.Parse(attrs)
	if err != nil {
		return "", false // the daemon refuses it in the same way
	}
	image = parsed[attestations.KeyTypeSbom]["generator"]
	usual, err := attestations.Parse(map[string]string{"attest:" + attestations.KeyTypeSbom: ""})
	return image, err == nil && image != "" && image != usual[attestations.KeyTypeSbom]["generator"]
}
