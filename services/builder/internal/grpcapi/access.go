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

// get is the record of a build of a project that the caller's rules allow.
func (s *Server) get(ctx context.Context, id string) (build.Record, error) {
	rec, err := s.builds.Get(ctx, id)
	if err == nil {
		err = ofProject(ctx, rec.Project)
	}
	return rec, err
}
