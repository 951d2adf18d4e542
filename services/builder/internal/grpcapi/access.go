package grpcapi

import (
	"context"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// ofProject is a DENIED fault unless the caller's rules allow a project.
func ofProject(ctx context.Context, project string) error {
	return auth.GrantOf(ctx).Check(auth.Use{Project: project})
}

// get returns the record of a build of a project that the caller's rules allow. A build
// of another project is NOT_FOUND, in the words for one that nobody started: a caller
// does not learn that it exists.
func (s *Server) get(ctx context.Context, id string) (build.Record, error) {
	rec, err := s.builds.Get(ctx, id)
	if err == nil && ofProject(ctx, rec.Project) != nil {
		return build.Record{}, build.NotFound(id)
	}
	return rec, err
}
