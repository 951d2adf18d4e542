package sqlite_test

import (
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/sqlite"
)

func openBench(b *testing.B) *sqlite.Store {
	b.Helper()
	store := open(b, filepath.Join(b.TempDir(), "builds.db"))
	b.Cleanup(func() {
		if err := store.Close(); err != nil {
			b.Error(err)
		}
	})
	return store
}

func newRecord(id string) build.Record {
	return build.Record{
		ID: id, Project: "web", State: build.Running, Origin: build.OriginAPI, Created: time.Now(),
		Daemon: "default", Tags: []string{"localhost:5000/web:latest"}, TraceID: "0af7651916cd43dd8448eb211c80319c",
	}
}

// lines are log lines as a step writes them.
func lines(first uint64, n int) []build.Frame {
	all := make([]build.Frame, n)
	for i := range all {
		all[i] = build.Frame{Sequence: first + uint64(i), Data: fmt.Appendf(nil, "step sha256:%064d line %d of its log\n", 7, first+uint64(i))}
	}
	return all
}

// BenchmarkUnchangedBuild is what the store adds to a build with nothing to do:
// Create and five commits of a few events.
func BenchmarkUnchangedBuild(b *testing.B) {
	store := openBench(b)
	request := make([]byte, 600)
	for n := 0; b.Loop(); n++ {
		rec := newRecord(fmt.Sprintf("b%d", n))
		if _, _, err := store.Create(b.Context(), rec, request); err != nil {
			b.Fatal(err)
		}
		for i := range 5 {
			if i == 4 {
				rec.State, rec.Ended = build.Succeeded, time.Now()
			}
			if err := store.Commit(b.Context(), rec, lines(uint64(4*i)+1, 4)); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkCommit is one commit of 100 log lines, by that many builds at once.
func BenchmarkCommit(b *testing.B) {
	for _, builds := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("builds=%d", builds), func(b *testing.B) {
			store := openBench(b)
			var left atomic.Int64
			left.Store(int64(b.N))
			var group sync.WaitGroup
			for i := range builds {
				rec := newRecord(fmt.Sprintf("b%d", i))
				if _, _, err := store.Create(b.Context(), rec, nil); err != nil {
					b.Fatal(err)
				}
				group.Go(func() {
					for n := uint64(1); left.Add(-1) >= 0; n += 100 {
						if err := store.Commit(b.Context(), rec, lines(n, 100)); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			group.Wait()
			b.ReportMetric(float64(b.N)*100/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkFrames is one reading of a portion of a build of 100,000 log lines, by
// that many watchers at once.
func BenchmarkFrames(b *testing.B) {
	store := openBench(b)
	if _, _, err := store.Create(b.Context(), newRecord("b"), nil); err != nil {
		b.Fatal(err)
	}
	const events = 100_000
	for n := uint64(1); n < events; n += 100 {
		if err := store.Commit(b.Context(), newRecord("b"), lines(n, 100)); err != nil {
			b.Fatal(err)
		}
	}
	for _, watchers := range []int{1, 200} {
		b.Run(fmt.Sprintf("watchers=%d", watchers), func(b *testing.B) {
			var left, read atomic.Int64
			left.Store(int64(b.N))
			var group sync.WaitGroup
			for range watchers {
				group.Go(func() {
					for from := uint64(1); left.Add(-1) >= 0; {
						some, err := store.Frames(b.Context(), "b", from, 64<<10)
						if err != nil {
							b.Error(err)
							return
						}
						read.Add(int64(len(some)))
						if from += uint64(len(some)); from > events {
							from = 1
						}
					}
				})
			}
			group.Wait()
			b.ReportMetric(float64(read.Load())/b.Elapsed().Seconds(), "events/s")
		})
	}
}
