package build

import (
	"context"
	"fmt"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// birth is what calls wait for that look up a build between its place in the store and
// its life in this process.
type birth struct {
	calls int // that create the build
	over  chan struct{}
}

// create stores a build, whose life begins with enliven if it was created.
func (s *Service) create(ctx context.Context, rec Record, request []byte) (_ Record, created bool, _ error) {
	s.mu.Lock()
	b := s.births[rec.ID]
	if b == nil {
		b = &birth{over: make(chan struct{})}
		s.births[rec.ID] = b
	}
	b.calls++
	s.mu.Unlock()
	stored, created, err := s.Store.Create(ctx, rec, request)
	if err != nil || !created {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.born(rec.ID)
	}
	return stored, created, err
}

// born ends the birth of a build, if it has one. mu is held.
func (s *Service) born(id string) {
	b := s.births[id]
	if b == nil {
		return
	}
	if b.calls--; b.calls == 0 {
		delete(s.births, id)
		close(b.over)
	}
}

// find returns a build that has not ended, or whose end is in memory only; or else
// what is closed when its life has begun; or neither.
func (s *Service) find(id string) (*live, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.live[id]; l != nil {
		return l, nil
	}
	if l := s.lost.byID[id]; l != nil {
		return l, nil
	}
	if b := s.births[id]; b != nil {
		return nil, b.over
	}
	return nil, nil
}

// lookUp returns a build that has not ended or, with nil, the record of one that has.
func (s *Service) lookUp(ctx context.Context, id string) (*live, Record, error) {
	for again := false; ; {
		l, birth := s.find(id)
		if birth != nil {
			select {
			case <-birth:
				continue
			case <-ctx.Done():
				return nil, Record{}, context.Cause(ctx)
			}
		}
		rec, err := s.Get(ctx, id)
		switch {
		case err != nil:
			return nil, rec, err
		case l != nil:
			return l, rec, nil
		case rec.State.Final():
			return nil, rec, nil
		case s.isStopping():
			return nil, rec, errGoesOn
		case again:
			return nil, rec, fault.New(fault.Internal, "STORAGE_FAILED", fmt.Sprintf("the end of build %q could not be stored", id),
				"read the builder's log; the record ends when the builder starts again")
		}
		again = true // It may have been created, or have ended, between the two looks.
	}
}

// maxLost bounds the builds whose end is in memory only.
const maxLost = 1000

// endedInMemory are builds whose end the store did not take, the oldest first.
type endedInMemory struct {
	byID  map[string]*live
	order []string
}

// keep remembers the end of a build that is not stored, for as long as the process
// lives; of many, the last ones.
func (s *Service) keep(l *live) {
	id := l.record().ID
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost.byID == nil {
		s.lost.byID = make(map[string]*live)
	}
	s.lost.byID[id] = l
	s.lost.order = append(s.lost.order, id)
	if len(s.lost.order) > maxLost {
		delete(s.lost.byID, s.lost.order[0])
		s.lost.order = s.lost.order[1:]
	}
}

func (s *Service) lostBuild(id string) *live {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost.byID[id]
}
