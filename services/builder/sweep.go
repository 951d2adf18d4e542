package builder

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/kilnbuild/kiln/pkg/clock"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
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

// newClock returns what says whether ages count: they are compared with the newest
// build where nothing says what time it was last.
func newClock(ctx context.Context, dir string, store build.Store, tel *telemetry.Telemetry) (*clock.Guard, error) {
	newest, _, err := store.List(ctx, build.Query{}, 1, "")
	if err != nil {
		return nil, err
	}
	opts := clock.Options{StateDir: dir, Log: tel.Logger, Meter: tel.Meter}
	if len(newest) > 0 {
		opts.Newest = newest[0].Created
	}
	return clock.NewGuard(opts)
}

func (s *Service) sweepOnce(ctx context.Context, keep *configv1.RetentionConfig, maxBuilds int) error {
	// The zero time and the largest age: by age nothing goes while the clock is not trusted.
	before, artifactAge := time.Time{}, time.Duration(math.MaxInt64)
	if s.clock.Check(ctx) == nil {
		before, artifactAge = clock.Now().Add(-keep.GetBuildAge().AsDuration()), keep.GetArtifactAge().AsDuration()
	}
	gone, err := s.store.Forget(ctx, before, maxBuilds, int64(keep.GetBuildBytes())) //nolint:gosec // bounded by the contract
	for _, id := range gone {
		err = errors.Join(err, s.artifacts.Remove(id))
	}
	_, swept := s.artifacts.Sweep(ctx, artifactAge, int64(keep.GetArtifactBytes())) //nolint:gosec // bounded by the contract
	_, cleaned := s.contexts.Sweep(ctx)
	if len(gone) > 0 {
		s.log.InfoContext(ctx, "old builds are forgotten", "builds", len(gone))
	}
	return errors.Join(err, swept, cleaned)
}
