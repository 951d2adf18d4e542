package buildkit

import (
	"context"
	"io/fs"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// How often and how long the disk of a daemon is measured. It takes as long as a walk over all its files.
const (
	measureAfter  = 2 * time.Second // from one measurement to the next, at least
	measureShare  = 20              // of the time, one part is spent on measuring
	measureWithin = time.Second     // that a listing waits for the measurement that it starts
)

// meter measures the bytes below a daemon's root that are in no record of its cache: its databases,
// downloads that have not ended, snapshots and content that builds left which were killed.
type meter struct {
	root string

	mu      sync.Mutex
	bytes   int64         // as measured last
	again   time.Time     // not before
	running chan struct{} // closed when the measurement under way has ended; nil: there is none
	stop    context.CancelFunc
}

// uncounted returns the bytes that are in no record, beside records of so many bytes: those of the
// measurement that it starts if that ends soon, else those of the one before.
func (m *meter) uncounted(ctx context.Context, recorded int64) int64 {
	m.mu.Lock()
	if m.running == nil && time.Now().After(m.again) {
		running := make(chan struct{})
		walking, stop := context.WithCancel(context.WithoutCancel(ctx))
		m.running, m.stop = running, stop
		go m.measure(walking, running, recorded)
	}
	running := m.running
	m.mu.Unlock()
	if running != nil {
		select {
		case <-running:
		case <-time.After(measureWithin):
		case <-ctx.Done():
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bytes
}

func (m *meter) measure(ctx context.Context, done chan struct{}, recorded int64) {
	started := time.Now()
	all, own := sizeOf(ctx, m.root)
	m.mu.Lock()
	defer m.mu.Unlock()
	if ctx.Err() == nil {
		m.bytes = max(own, all-recorded) // a blob may count for several records
	}
	m.stop()
	m.again, m.running = time.Now().Add(max(measureAfter, measureShare*time.Since(started))), nil
	close(done)
}

// close ends the measurement under way.
func (m *meter) close() {
	m.mu.Lock()
	running := m.running
	if running != nil {
		m.stop()
	}
	m.mu.Unlock()
	if running != nil {
		<-running
	}
}

// sizeOf returns the bytes on the disk below a daemon's root, without what is mounted there, and of these
// the bytes of databases and unfinished downloads, which are in no record. What cannot be read, or is gone
// meanwhile, is left out: it is a figure for people.
func sizeOf(ctx context.Context, root string) (all, own int64) {
	var top syscall.Stat_t
	if syscall.Lstat(root, &top) != nil {
		return 0, 0
	}
	type inode struct{ device, number uint64 }
	linked := map[inode]bool{}
	_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return fs.SkipAll
		}
		var stat syscall.Stat_t
		if err != nil || syscall.Lstat(path, &stat) != nil {
			return nil //nolint:nilerr // the others are looked at
		}
		if stat.Dev != top.Dev { // the root of a step
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if id := (inode{stat.Dev, stat.Ino}); stat.Nlink > 1 && !entry.IsDir() {
			if linked[id] {
				return nil
			}
			linked[id] = true
		}
		all += stat.Blocks * 512
		if entry.Type().IsRegular() && ofNoRecord(root, path) {
			own += stat.Blocks * 512
		}
		return nil
	})
	return all, own
}

// ofNoRecord reports whether a file is a database or an unfinished download.
func ofNoRecord(root, path string) bool {
	rest, err := filepath.Rel(root, path)
	if err != nil {
		return false
	}
	for _, pattern := range []string{"*.db", "*/*.db", "*/content/ingest/*/*"} {
		if fits, _ := filepath.Match(pattern, rest); fits {
			return true
		}
	}
	return false
}
