package builder

import (
	"context"
	"errors"
	"time"

	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// sweep removes what is over its bounds, again and again until ctx ends. What
// cannot be removed now is tried the next time.
func (s *Service) sweep(ctx context.Context, keep *configv1.RetentionConfig, maxBuilds int) error {
	tick := time.NewTicker(keep.GetInterval().AsDuration())
	defer tick.Stop()
	for {
		if err := s.sweepOnce(ctx, keep, maxBuilds); err != nil && ctx.Err() == nil {
			s.log.ErrorContext(ctx, "what is no longer kept cannot be removed", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (s *Service) sweepOnce(ctx context.Context, keep *configv1.RetentionConfig, maxBuilds int) error {
	before := time.Now().Add(-keep.GetBuildAge().AsDuration())
	gone, err := s.store.Forget(ctx, before, maxBuilds, int64(keep.GetBuildBytes())) //nolint:gosec // bounded by the contract
	for _, id := range gone {
		err = errors.Join(err, s.artifacts.Remove(id))
	}
	_, swept := s.artifacts.Sweep(ctx, keep.GetArtifactAge().AsDuration(), int64(keep.GetArtifactBytes())) //nolint:gosec // bounded by the contract
	_, cleaned := s.contexts.Sweep(ctx)
	if len(gone) > 0 {
		s.log.InfoContext(ctx, "old builds are forgotten", "builds", len(gone))
	}
	return errors.Join(err, swept, cleaned)
}
