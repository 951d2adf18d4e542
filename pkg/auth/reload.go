package auth

import (
	"log/slog"
	"os"
	"sync"
	"time"
)

// checkEvery is how often files are looked at: at most once in this time, and
// only when what they say is asked for.
const checkEvery = time.Second

// reloaded is a value that is read from files, and read again when they change.
// A read that fails keeps the value there was. Files are looked at when the
// value is asked for, so there is nothing to start and nothing to stop.
type reloaded[T any] struct {
	what  string // "certificates"
	paths []string
	read  func() (T, error)
	log   *slog.Logger

	mu      sync.Mutex
	checked time.Time
	state   []os.FileInfo
	value   T
	failed  bool // they changed, and do not load
}

// newReloaded reads the value for the first time; then a failure is an error.
func newReloaded[T any](what string, paths []string, log *slog.Logger, read func() (T, error)) (*reloaded[T], error) {
	r := &reloaded[T]{what: what, paths: paths, read: read, log: log, checked: time.Now()}
	r.state = r.look()
	value, err := read()
	if err != nil {
		return nil, err
	}
	r.value = value
	return r, nil
}

// get is the value, as fresh as checkEvery.
func (r *reloaded[T]) get() T {
	value, _ := r.status()
	return value
}

// status is the value, and whether it is one that the files do not hold any more, since
// what they hold does not load.
func (r *reloaded[T]) status() (value T, stale bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if now.Sub(r.checked) < checkEvery {
		return r.value, r.failed
	}
	r.checked = now
	state := r.look()
	if sameFiles(state, r.state) {
		r.failed = false // they are as they were again
		return r.value, false
	}
	value, err := r.read()
	if err != nil {
		// Written in two steps, most likely: the state is not remembered, so
		// that the next look reads again.
		r.failed = true
		r.log.Warn("files changed and do not load; what they held before stays in force", "what", r.what, "files", r.paths, "error", err)
		return r.value, true
	}
	r.state, r.value, r.failed = state, value, false
	r.log.Info("files were read again", "what", r.what, "files", r.paths)
	return r.value, false
}

func (r *reloaded[T]) look() []os.FileInfo {
	state := make([]os.FileInfo, len(r.paths))
	for i, path := range r.paths {
		if info, err := os.Stat(path); err == nil {
			state[i] = info
		}
	}
	return state
}

func sameFiles(a, b []os.FileInfo) bool {
	for i := range a {
		if (a[i] == nil) != (b[i] == nil) {
			return false
		}
		if a[i] == nil {
			continue
		}
		if !os.SameFile(a[i], b[i]) || a[i].Size() != b[i].Size() || !a[i].ModTime().Equal(b[i].ModTime()) {
			return false
		}
	}
	return true
}
