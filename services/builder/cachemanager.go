package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/kilnbuild/kiln/pkg/telemetry"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
)

// dialCacheManager prepares the connection to the cache manager, if there is one.
func (s *Service) dialCacheManager(tel *telemetry.Telemetry) error {
	cfg := s.cfg.GetCacheManager()
	if cfg == nil {
		return nil
	}
	conn, err := dialPeer(cfg, tel)
	if err != nil {
		return fmt.Errorf("cache_manager: %w", err)
	}
	s.parts.Push("cache manager", func(context.Context) error { return conn.Close() })
	s.caches = cachemanagerv1.NewCacheManagerServiceClient(conn)
	s.reporter = newReporter(s.caches, tel.Logger)
	if every := cfg.GetPruneAfterBuild(); every != nil {
		s.pruner = &pruner{api: s.caches, every: every.AsDuration(), log: tel.Logger, asked: make(chan struct{}, 1)}
	}
	return nil
}

// pruner asks the cache manager for runs of its policy, after builds.
type pruner struct {
	api   cachemanagerv1.CacheManagerServiceClient
	every time.Duration // at most once in this time
	log   *slog.Logger
	asked chan struct{}
}

// ask asks for a run soon. It does not wait. A nil pruner asks for none.
func (p *pruner) ask() {
	if p == nil {
		return
	}
	select {
	case p.asked <- struct{}{}:
	default: // it is asked for already
	}
}

// pruneTimeout bounds a run; what it leaves goes in the next one.
const pruneTimeout = 10 * time.Minute

// run asks, until ctx ends. A run that cannot be had is no fault of a build: the cache
// manager has its own schedule.
func (p *pruner) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.asked:
		}
		if err := p.prune(ctx); err != nil && ctx.Err() == nil {
			p.log.WarnContext(ctx, "the cache manager gave no run after a build", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(p.every):
		}
	}
}

func (p *pruner) prune(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pruneTimeout)
	defer cancel()
	stream, err := p.api.Prune(ctx, &cachemanagerv1.PruneRequest{Force: true, ForceAll: true, AfterBuild: true})
	for err == nil {
		_, err = stream.Recv()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
