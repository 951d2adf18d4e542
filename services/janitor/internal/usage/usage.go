package usage

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

// Storage is what the storage of a registry holds, in bytes where not said.
type Storage struct {
	Blobs         int64 // their number
	BlobBytes     int64
	UntaggedBytes int64 // of BlobBytes, those that no tag reaches
	Uploads       int64 // their number
	UploadBytes   int64
	Quarantined   int64 // bytes in quarantine
	DiskTotal     int64
	DiskFree      int64
	Err           error // why it could not be looked at; then the rest is 0
}

// Store is what is asked of a registry's storage here.
type Store interface {
	// Usage adds up what is stored. Reached says whether a tag reaches a blob.
	Usage(ctx context.Context, reached func(content.Digest) bool) (Storage, error)
}

// Metrics takes what was found.
type Metrics interface {
	Surveyed(ctx context.Context, s Snapshot)
}

// surveyTimeout bounds one look at the whole registry.
const surveyTimeout = 30 * time.Minute

// kept is how many snapshots are kept for pages to come, and for how long.
const (
	keptSnapshots = 4
	keptFor       = 15 * time.Minute
)

// Surveyor looks at a whole registry.
type Surveyor struct {
	scanner *Scanner
	store   Store // nil: out of reach
	metrics Metrics
	tracer  trace.Tracer

	stop  chan struct{}  // closed: looks under way end
	looks sync.WaitGroup // looks under way

	mu      sync.Mutex
	closed  bool
	running *survey
	recent  []Snapshot // the newest last
}

// survey is one look that several callers may wait for.
type survey struct {
	done     chan struct{}
	snapshot Snapshot
	err      error
}

// NewSurveyor returns a surveyor. A nil store is out of reach. Close it.
func NewSurveyor(registry Registry, store Store, metrics Metrics, tracer trace.Tracer) *Surveyor {
	return &Surveyor{
		scanner: NewScanner(registry), store: store, metrics: metrics, tracer: tracer, stop: make(chan struct{}),
	}
}

// Close ends the look under way and waits for it.
func (s *Surveyor) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.stop)
	}
	s.mu.Unlock()
	s.looks.Wait()
}

// Survey looks at the registry as it is now. Calls at the same time share one
// look, which goes on when a caller gives up: the next one need not wait as long.
func (s *Surveyor) Survey(ctx context.Context) (Snapshot, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return Snapshot{}, fault.New(fault.Unavailable, "SHUTTING_DOWN", "the janitor is shutting down", "call again later")
	}
	current := s.running
	if current == nil {
		current = &survey{done: make(chan struct{})}
		s.running = current
		s.looks.Go(func() { s.look(context.WithoutCancel(ctx), current) })
	}
	s.mu.Unlock()
	select {
	case <-current.done:
		return current.snapshot, current.err
	case <-ctx.Done():
		return Snapshot{}, ctx.Err()
	}
}

// errForeign is for a storage that has nothing of what the registry has.
var errForeign = errors.New("it holds no blob, and the registry has some: it is not the registry's storage")

// look does the survey that callers wait for.
func (s *Surveyor) look(ctx context.Context, current *survey) {
	ctx, cancel := context.WithTimeout(ctx, surveyTimeout)
	defer cancel()
	s.looks.Go(func() {
		select {
		case <-s.stop:
			cancel()
		case <-current.done:
		}
	})
	current.snapshot, current.err = s.snapshot(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = nil
	if current.err == nil {
		s.recent = append(s.recent, current.snapshot)
		s.recent = s.recent[max(0, len(s.recent)-keptSnapshots):]
	}
	close(current.done)
}

// snapshot reads the registry and its storage.
func (s *Surveyor) snapshot(ctx context.Context) (_ Snapshot, err error) {
	ctx, span := s.tracer.Start(ctx, "registry survey")
	defer func() {
		if err != nil {
			span.RecordError(err)
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}()
	found, err := s.scanner.Scan(ctx)
	if err != nil {
		return Snapshot{}, err
	}
	snapshot, reached := Aggregate(found)
	snapshot.Time = time.Now()
	if s.store != nil {
		stored, err := s.store.Usage(ctx, func(d content.Digest) bool {
			_, ok := reached[d]
			return ok
		})
		if err == nil && stored.Blobs == 0 && len(reached) > 0 {
			err = errForeign
		}
		stored.Err = err
		snapshot.Storage = &stored
	}
	span.SetAttributes(
		attribute.Int64("kiln.registry.repositories", snapshot.Total.Repositories),
		attribute.Int64("kiln.registry.tags", snapshot.Total.Tags),
		attribute.Int64("kiln.registry.bytes", snapshot.Total.DeduplicatedBytes))
	s.metrics.Surveyed(ctx, snapshot)
	return snapshot, nil
}
