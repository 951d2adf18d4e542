package gateway

import (
	"context"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/frontend/attestations"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit"
)

// check holds a request to the policy, and takes the sessions that it names until
// release is called. Its errors are PERMISSION_DENIED and INVALID_ARGUMENT faults.
//
// A frontend that a Dockerfile names in its first lines is read by the daemon, and
// not seen here: allowedRepositories of its gateway.v0 frontend holds that.
func (g *Gateway) check(ctx context.Context, req proto.Message) (release func(), err error) {
	if err := g.allowed(req); err != nil {
		return nil, err
	}
	if err := auth.GrantOf(ctx).Check(useOf(req, project(ctx))); err != nil {
		return nil, err
	}
	ids, err := sessionsOf(req)
	if err != nil {
		return nil, err
	}
	return g.sessions.claim(g.caller(ctx).Identity, ids)
}

func (g *Gateway) allowed(req proto.Message) error {
	switch r := req.(type) {
	case *controlapi.SolveRequest:
		if err := g.policy.Entitlements(buildkit.EntitlementNames(r.GetEntitlements())); err != nil {
			return err
		}
		return g.allowedFrontend(r.GetFrontend(), r.GetFrontendAttrs())
	case *gatewaypb.SolveRequest:
		return g.allowedFrontend(r.GetFrontend(), r.GetFrontendOpt())
	default:
		return nil
	}
}

func (g *Gateway) allowedFrontend(name string, attrs map[string]string) error {
	if err := g.policy.Frontend(name, attrs); err != nil {
		return err
	}
	named, given := generator(attrs)
	if !given {
		return nil
	}
	return g.policy.SBOMGenerator(named)
}

// useOf is what the rules of a caller are about.
func useOf(req proto.Message, project string) auth.Use {
	use := auth.Use{Project: project}
	switch r := req.(type) {
	case *controlapi.SolveRequest:
		use.Entitlements = buildkit.EntitlementNames(r.GetEntitlements())
		use.Frontend = buildkit.FrontendImage(r.GetFrontend(), r.GetFrontendAttrs())
		for _, e := range r.GetExporters() {
			use.Registries = append(use.Registries, buildkit.Pushes(e.GetAttrs())...)
		}
		// BuildKit still takes the older forms, and exporters that the client names only in
		// its session, which cannot be seen here.
		use.Registries = append(use.Registries, buildkit.Pushes(r.GetExporterAttrsDeprecated())...)
		if r.GetEnableSessionExporter() {
			use.Registries = append(use.Registries, "exporters of the session")
		}
		if ref := r.GetCache().GetExportRefDeprecated(); ref != "" {
			use.Registries = append(use.Registries, buildkit.CacheRepository("registry", map[string]string{"ref": ref})...)
		}
		for _, e := range r.GetCache().GetExports() {
			use.Registries = append(use.Registries, buildkit.CacheRepository(e.GetType(), e.GetAttrs())...)
		}
	case *gatewaypb.SolveRequest:
		use.Frontend = buildkit.FrontendImage(r.GetFrontend(), r.GetFrontendOpt())
	}
	return use
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

// unreadable is the error for a message that cannot be decoded.
func unreadable(err error) error {
	return fault.Wrap(err, fault.InvalidArgument, "INVALID_FIELD", "the request cannot be read", "send it as BuildKit's own client does")
}
