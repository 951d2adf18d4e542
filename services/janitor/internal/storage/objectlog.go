package storage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"time"
)

// objectLog is a log whose parts are objects: an object cannot be added to.
type objectLog struct {
	objects *objects
	path    string
	parts   int
}

func (o *objects) log(path string, _ bool) (log, error) {
	parts, err := o.parts(path)
	l := &objectLog{objects: o, path: path}
	if err == nil && len(parts) > 0 {
		l.parts, err = strconv.Atoi(parts[len(parts)-1])
	}
	return l, err
}

// parts are the names of the parts of a log, in order.
func (o *objects) parts(path string) ([]string, error) {
	is, err := o.list(path)
	parts := is.all()
	slices.Sort(parts)
	return parts, err
}

func (l *objectLog) add(lines []byte) error {
	l.parts++
	return l.objects.write(path.Join(l.path, fmt.Sprintf("%08d", l.parts)), lines)
}

func (l *objectLog) Close() error { return nil }

func (o *objects) readLog(of string) (io.ReadCloser, error) {
	parts, err := o.parts(of)
	if err != nil {
		return nil, err
	}
	if len(parts) == 0 {
		return nil, fmt.Errorf("%s: %w", of, errGone)
	}
	var all bytes.Buffer
	for _, part := range parts {
		text, err := o.read(path.Join(of, part), maxPart)
		if err != nil {
			return nil, err
		}
		all.Write(text)
	}
	return io.NopCloser(&all), nil
}

// maxPart bounds what one part of a log may hold.
const maxPart = 1 << 30

// confirmAfter is how long a process that has written itself into the lock waits before it
// looks whether another has as well: objects are written without conditions.
const confirmAfter = time.Second

// lock has the help of a kernel only for a holder that was killed where this process runs;
// another one is waited for.
func (o *objects) lock(ctx context.Context, path, run string) (held context.Context, unlock func(), err error) {
	h := heart{
		load: func() (holder, error) {
			raw, err := o.read(path, maxLink)
			if errors.Is(err, errGone) {
				return holder{}, nil
			}
			return parseHolder(raw), err
		},
		store: func(me holder) error {
			raw, err := json.Marshal(me)
			if err != nil {
				return err
			}
			return o.write(path, raw)
		},
	}
	if !o.mu.TryLock() {
		other, _ := h.load()
		return nil, nil, taken(other)
	}
	me := newHolder(run)
	if err := h.enter(ctx, me); err != nil {
		o.mu.Unlock()
		return nil, nil, err
	}
	held, stop := h.keep(ctx, me)
	return held, func() {
		defer o.mu.Unlock()
		stop()
		if is, err := h.load(); err == nil && is.ID == me.ID { // else another one has it
			_ = o.remove(context.Background(), path) // without it others wait for a while
		}
	}, nil
}

// enter writes the holder into the lock, unless another one is there or comes as well. Also
// requests that were under way as the last holder was killed are over then.
func (h heart) enter(ctx context.Context, me holder) error {
	if err := h.await(ctx, func(was holder) bool { return was.ID == me.ID || was.dead(me) }); err != nil {
		return err
	}
	if err := h.store(me); err != nil {
		return err
	}
	if err := pause(ctx, confirmAfter); err != nil {
		return err
	}
	is, err := h.load()
	if err == nil && is.ID != me.ID {
		err = taken(is)
	}
	return err
}
