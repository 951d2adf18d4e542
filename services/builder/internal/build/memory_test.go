package build_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// memory is a store without a disk, so that tests can turn the clock. The real
// one has a conformance suite of its own (storetest).
type memory struct {
	build.Store // what these tests do not call

	mu       sync.Mutex
	records  map[string]build.Record
	requests map[string][]byte
	frames   map[string][]build.Frame
	failing  error // of the next commits
	refuses  func(rec build.Record, frames []build.Frame) error
	commits  int
	reads    int
	creating func() // called once a build is created, before Create returns
}

func newMemory() *memory {
	return &memory{records: map[string]build.Record{}, requests: map[string][]byte{}, frames: map[string][]build.Frame{}}
}

func (m *memory) Create(ctx context.Context, rec build.Record, request []byte) (build.Record, bool, error) {
	if known, err := m.Find(ctx, rec.Project, rec.RequestID); err == nil {
		return known, false, nil
	}
	defer func() {
		if m.creating != nil {
			m.creating()
		}
	}()
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.records[rec.ID]; ok {
		return build.Record{}, false, fault.New(fault.AlreadyExists, "ALREADY_EXISTS", "known", "choose another")
	}
	m.records[rec.ID], m.requests[rec.ID] = rec, request
	return rec, true, nil
}

func (m *memory) Find(_ context.Context, project, requestID string) (build.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, rec := range m.records {
		if requestID != "" && rec.RequestID == requestID && rec.Project == project {
			return rec, nil
		}
	}
	return build.Record{}, build.ErrUnknown
}

func (m *memory) Commit(_ context.Context, rec build.Record, frames []build.Frame) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.commits++
	if m.failing != nil {
		return m.failing
	}
	if m.refuses != nil {
		if err := m.refuses(rec, frames); err != nil {
			return err
		}
	}
	if m.records[rec.ID].State.Final() {
		return build.ErrFinal
	}
	m.records[rec.ID] = rec
	m.frames[rec.ID] = append(m.frames[rec.ID], frames...)
	return nil
}

func (m *memory) Get(_ context.Context, id string) (build.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	rec, ok := m.records[id]
	if !ok {
		return rec, build.ErrUnknown
	}
	return rec, nil
}

func (m *memory) Request(_ context.Context, id string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.requests[id], nil
}

func (m *memory) Frames(_ context.Context, id string, from uint64, maxBytes int) ([]build.Frame, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := m.frames[id]
	page := all[min(int(from-1), len(all)):] //nolint:gosec // events of a test
	for n, f := range page {
		if maxBytes -= len(f.Data); maxBytes < 0 {
			page = page[:n+1]
			break
		}
	}
	return slices.Clone(page), nil
}

func (m *memory) Unended(context.Context) ([]build.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []build.Record
	for _, rec := range slices.SortedFunc(maps.Values(m.records), func(a, b build.Record) int {
		return strings.Compare(a.ID, b.ID)
	}) {
		if !rec.State.Final() {
			all = append(all, rec)
		}
	}
	return all, nil
}

func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failing = err
}

// line gives slots in the order in which builds come.
type line struct {
	mu     sync.Mutex
	free   int
	places []*place
	closed bool

	entered build.Entry // the last
}

type place struct {
	line  *line
	ready chan struct{}
	state int // 0 waits, 1 has a slot, 2 gone
}

func (l *line) Enter(e build.Entry) (build.Turn, error) { return l.Readmit(e), nil }

func (l *line) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
}

func (l *line) Readmit(e build.Entry) build.Turn {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entered = e
	p := &place{line: l, ready: make(chan struct{})}
	l.places = append(l.places, p)
	l.next()
	return p
}

func (l *line) next() {
	for _, p := range l.places {
		if !l.closed && l.free > 0 && p.state == 0 {
			l.free--
			p.state = 1
			close(p.ready)
		}
	}
}

func (p *place) Wait(ctx context.Context, notify func(build.Waiting)) error {
	select {
	case <-p.ready:
		return nil
	default:
		notify(build.Waiting{Position: 1, Reason: "full"})
	}
	select {
	case <-p.ready:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (p *place) Release() {
	p.line.mu.Lock()
	defer p.line.mu.Unlock()
	if p.state == 1 {
		p.line.free++
	}
	p.state = 2
	p.line.next()
}

// counted counts what the metrics are told.
type counted struct {
	mu             sync.Mutex
	started, ended int
}

func (c *counted) BuildStarted(context.Context, build.Origin) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.started++
}

func (c *counted) BuildWaited(context.Context, time.Duration) {}

func (c *counted) BuildEnded(context.Context, build.Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended++
}
