package build

import (
	"context"
	"fmt"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// pageBytes is how much is read from the store at a time for one reader.
const pageBytes = 1 << 20

// Watch gives emit every event of a build from a sequence number on, 0 and 1
// being the first, in order: those that are past first, then each once it is
// stored. It returns nil after the outcome. Errors: NOT_FOUND; OUT_OF_RANGE for a
// number beyond the next one; UNAVAILABLE (SHUTTING_DOWN) when the builder stops
// and the build goes on when it is back; what emit returns; the cause of ctx.
func (s *Service) Watch(ctx context.Context, id string, from uint64, emit func(Frame) error) error {
	next := max(from, 1)
	l, rec, err := s.lookUp(ctx, id)
	if err == nil {
		err = inRange(rec, next)
	}
	if err != nil {
		return err
	}
	if l == nil {
		_, err = s.replay(ctx, id, next, emit)
		return err
	}
	for {
		frames, behind, changed := l.after(next)
		var err error
		switch {
		case behind:
			next, err = s.replay(ctx, id, next, emit)
		case len(frames) > 0:
			next, err = give(frames, next, emit)
		default:
			select {
			case <-changed:
			case <-ctx.Done():
				err = context.Cause(ctx)
			case <-l.done:
				if l.storedUpTo() < next {
					return l.end
				}
			}
		}
		if err != nil {
			return err
		}
	}
}

func inRange(rec Record, next uint64) error {
	if next <= rec.LastSeq+1 {
		return nil
	}
	err := fault.New(fault.OutOfRange, "OUT_OF_RANGE",
		fmt.Sprintf("build %s has no event %d; its last one so far is %d", rec.ID, next, rec.LastSeq),
		"watch from the number after the last event that you have, or from 0")
	err.Field, err.Value = "from_sequence", fmt.Sprint(next)
	return err
}

// replay gives what the store has from next on, and returns the number after it.
func (s *Service) replay(ctx context.Context, id string, next uint64, emit func(Frame) error) (uint64, error) {
	for {
		frames, err := s.Store.Frames(ctx, id, next, pageBytes)
		if err != nil {
			return next, s.named(id, err)
		}
		if len(frames) == 0 {
			return next, nil
		}
		if next, err = give(frames, next, emit); err != nil {
			return next, err
		}
	}
}

func give(frames []Frame, next uint64, emit func(Frame) error) (uint64, error) {
	for _, frame := range frames {
		if err := emit(frame); err != nil {
			return next, err
		}
		next = frame.Sequence + 1
	}
	return next, nil
}

// after returns the recent frames from next on, or that the reader is behind
// them, or, without either, the channel that is closed when there are more.
func (l *live) after(next uint64) (frames []Frame, behind bool, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if next > l.stored {
		return nil, false, l.changed
	}
	if len(l.recent) == 0 || next < l.recent[0].Sequence {
		return nil, true, nil
	}
	return l.recent[next-l.recent[0].Sequence:], false, nil
}

func (l *live) storedUpTo() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stored
}
