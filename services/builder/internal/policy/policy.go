// Package policy decides what a request may ask for beyond a plain build: rights
// on the daemon's host, foreign frontends and makers of SBOMs. What the operator
// has not granted is denied.
package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/kilnbuild/kiln/pkg/fault"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// Policy is what the operator grants. The zero value and nil grant nothing.
type Policy struct {
	entitlements   []string
	frontends      []string
	sbomGenerators []string
	sbomGenerator  string
	objectCaches   []*configv1.ObjectCache
	insecure       []string // registries
}

// New returns the policy of a configuration, which may be nil.
func New(cfg *configv1.BuildPolicyConfig) *Policy {
	return &Policy{
		entitlements: cfg.GetEntitlements(), frontends: cfg.GetFrontends(),
		sbomGenerators: cfg.GetSbomGenerators(), sbomGenerator: cfg.GetSbomGenerator(),
		objectCaches: cfg.GetObjectCaches(), insecure: cfg.GetInsecureRegistries(),
	}
}

// Entitlements returns a POLICY_DENIED fault unless all rights, by BuildKit's
// names, are granted.
func (p *Policy) Entitlements(names []string) error {
	for _, name := range names {
		if p == nil || !slices.Contains(p.entitlements, name) {
			return denied(fmt.Sprintf("the entitlement %q is not granted", name), name, "policy.entitlements")
		}
	}
	return nil
}

// builtIn is the frontend that every daemon has, which needs no grant.
const builtIn = "dockerfile.v0"

// Frontend returns a POLICY_DENIED fault unless a frontend, by BuildKit's name and
// with its attributes, is the daemon's own, an image of docker/dockerfile, or one whose
// image is granted.
func (p *Policy) Frontend(name string, attrs map[string]string) error {
	if name == "" || name == builtIn {
		return nil
	}
	source := attrs["source"]
	switch {
	case name == "gateway.v0" && IsDockerfile(source):
		return nil
	case p == nil:
	case name == "gateway.v0" && matches(p.frontends, source):
		return nil
	case name != "gateway.v0" && slices.Contains(p.frontends, "*"):
		return nil // a frontend that a daemon was built with, or one that it says it does not know
	}
	return denied(fmt.Sprintf("the frontend %q is not granted", cmp.Or(source, name)), cmp.Or(source, name), "policy.frontends")
}

// Granted reports whether the operator names the image of a frontend.
func (p *Policy) Granted(image string) bool { return p != nil && matches(p.frontends, image) }

// IsDockerfile reports whether an image is of docker/dockerfile, the releases of the
// frontend that every daemon has built in. They need no grant: a daemon that reads a
// "# syntax=" line by itself takes them too (allowedRepositories in the shipped
// buildkitd.toml).
func IsDockerfile(image string) bool {
	named, err := reference.ParseNormalizedNamed(image)
	return err == nil && named.Name() == "docker.io/docker/dockerfile"
}

// Official reports whether an image is a stable release of the frontend that
// daemons have built in; the labs channel understands more.
func Official(image string) bool {
	if !IsDockerfile(image) {
		return false
	}
	named, err := reference.ParseNormalizedNamed(image)
	tagged, ok := named.(reference.Tagged)
	return err == nil && !ok || ok && !strings.HasSuffix(tagged.Tag(), "labs")
}

// SBOMGenerator returns a POLICY_DENIED fault unless an image may make SBOMs: one
// that is granted, or the default.
func (p *Policy) SBOMGenerator(image string) error {
	if image == "" || p != nil && (matches(p.sbomGenerators, image) || p.sbomGenerator != "" && matches([]string{p.sbomGenerator}, image)) {
		return nil
	}
	return denied(fmt.Sprintf("the SBOM generator %q is not granted", image), image, "policy.sbom_generators")
}

// DefaultSBOMGenerator is the image that makes SBOMs when a request names none.
// Empty: BuildKit's own default.
func (p *Policy) DefaultSBOMGenerator() string {
	if p == nil {
		return ""
	}
	return p.sbomGenerator
}

// matches reports whether an image is one of the patterns, however the two write
// the parts of a reference that may be left out.
func matches(patterns []string, image string) bool {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return false
	}
	named = reference.TagNameOnly(named)
	names := []string{named.String(), reference.FamiliarString(named)}
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		prefix, wild := strings.CutSuffix(pattern, "*")
		return slices.ContainsFunc(names, func(name string) bool {
			if wild {
				return strings.HasPrefix(name, prefix)
			}
			whole, err := reference.ParseNormalizedNamed(pattern)
			return err == nil && reference.TagNameOnly(whole).String() == name
		})
	})
}

func denied(message, value, key string) error {
	err := fault.New(fault.PermissionDenied, "POLICY_DENIED", message+" by the builder's policy",
		"leave it out, or ask the operator to add it to "+key+" of the builder")
	err.Value = value
	return err
}
