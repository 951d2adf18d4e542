package gateway

import (
	"context"
	"errors"

	controlapi "github.com/moby/buildkit/api/services/control"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit"
)

// check holds a request to the policy and to the rules of its caller. Its errors are
// PERMISSION_DENIED and INVALID_ARGUMENT faults.
//
// The daemon reads a frontend that the first lines of a Dockerfile name, which is not
// seen here: allowedRepositories of its gateway.v0 frontend holds that.
func (g *Gateway) check(ctx context.Context, req proto.Message) error {
	return asked(req, project(ctx)).Check(ctx, g.policy)
}

// asked returns what policy and rules judge of a request.
func asked(req proto.Message, project string) buildkit.Asked {
	a := buildkit.Asked{Project: project}
	switch r := req.(type) {
	case *controlapi.SolveRequest:
		a.Entitlements, a.Frontend, a.Attrs = r.GetEntitlements(), r.GetFrontend(), r.GetFrontendAttrs()
		a.Hidden = r.GetEnableSessionExporter()
		for _, e := range r.GetExporters() {
			a.Exports = append(a.Exports, buildkit.Entry{Type: e.GetType(), Attrs: e.GetAttrs()})
		}
		// BuildKit still takes the older forms.
		if attrs := r.GetExporterAttrsDeprecated(); len(attrs) > 0 {
			a.Exports = append(a.Exports, buildkit.Entry{Type: r.GetExporterDeprecated(), Attrs: attrs})
		}
		a.CacheImports = append(entriesOf(r.GetCache().GetImports()), registryEntries(r.GetCache().GetImportRefsDeprecated()...)...)
		a.CacheExports = append(entriesOf(r.GetCache().GetExports()), registryEntries(r.GetCache().GetExportRefDeprecated())...)
	case *gatewaypb.SolveRequest:
		a.Frontend, a.Attrs, a.CacheImports = r.GetFrontend(), r.GetFrontendOpt(), entriesOf(r.GetCacheImports())
	}
	return a
}

// entriesOf returns the caches of a request; BuildKit has two types of the same shape.
func entriesOf[T interface {
	GetType() string
	GetAttrs() map[string]string
}](caches []T) []buildkit.Entry {
	var all []buildkit.Entry
	for _, c := range caches {
		all = append(all, buildkit.Entry{Type: c.GetType(), Attrs: c.GetAttrs()})
	}
	return all
}

func registryEntries(refs ...string) []buildkit.Entry {
	var all []buildkit.Entry
	for _, ref := range refs {
		if ref != "" {
			all = append(all, buildkit.Entry{Type: "registry", Attrs: map[string]string{"ref": ref}})
		}
	}
	return all
}

// unreadable is the error for a message that cannot be decoded, or that exceeds a limit.
func unreadable(err error) error {
	if own, ok := errors.AsType[*fault.Error](err); ok {
		return own
	}
	return fault.Wrap(err, fault.InvalidArgument, "INVALID_FIELD", "the request cannot be read", "send it as BuildKit's own client does")
}
