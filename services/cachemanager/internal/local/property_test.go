package local

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"pgregory.net/rapid"
)

// Whatever is exported, leased, removed and swept, in any order: all that a tag or a
// lease reaches is there.
func TestNothingReachedIsEverMissing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "") //nolint:usetesting // one for each try
		if err != nil {
			rt.Fatal(err)
		}
		l := &layout{dir: dir, form: rapid.SampledFrom(forms).Draw(rt, "form")}
		fatal := func(err error) {
			if err != nil {
				rt.Helper()
				rt.Fatal(err)
			}
		}
		d := l.open(rapid.SampledFrom([]time.Duration{0, time.Minute}).Draw(rt, "grace"))
		moved := time.Duration(0)
		d.now = func() time.Time { return time.Now().Add(moved) }
		held := map[string]Lease{}
		tag := rapid.SampledFrom([]string{"a", "b", "c"})
		layers := rapid.SliceOfN(rapid.SampledFrom([]string{"1", "2", "3", "4", "5"}), 1, 4)
		ctx := context.Background()
		fatal(l.export("a", nil, "1"))
		rt.Repeat(map[string]func(*rapid.T){
			"export": func(rt *rapid.T) { fatal(l.export(tag.Draw(rt, "tag"), nil, layers.Draw(rt, "layers")...)) },
			"lease": func(rt *rapid.T) {
				lease, err := d.Acquire(ctx, Lease{Tag: tag.Draw(rt, "tag"), Mode: Import, TTL: rapid.SampledFrom([]time.Duration{time.Second, time.Hour}).Draw(rt, "ttl")})
				fatal(err)
				held[lease.ID] = lease
			},
			"release": func(rt *rapid.T) {
				for id := range held {
					_, err := d.Release(ctx, id)
					fatal(err)
					delete(held, id)
					return
				}
			},
			"remove": func(rt *rapid.T) {
				target := listed(t, d, tag.Draw(rt, "tag"))
				leases, err := d.Leases(ctx)
				fatal(err)
				fatal(d.Remove(ctx, target, 0, func(tag string, _ int64) {
					if leases[tag] != "" {
						rt.Fatalf("tag %s went, which lease %s holds", tag, leases[tag])
					}
				}))
			},
			"shrink": func(rt *rapid.T) {
				listing, err := d.List(ctx)
				fatal(err)
				for _, r := range listing.Records {
					if n := len(r.Shrinks); n > 0 {
						_, _, err := d.Shrink(ctx, r.Target(), rapid.IntRange(1, n).Draw(rt, "steps"), 0)
						fatal(err)
						return
					}
				}
			},
			"sweep": func(rt *rapid.T) { fatal(d.Sweep(ctx, rapid.Bool().Draw(rt, "urgent"))) },
			"later": func(rt *rapid.T) { moved += 40 * time.Second },
			"": func(rt *rapid.T) {
				fatal(l.whole())
				for _, lease := range held {
					if lease.Digest != "" && lease.Expires.After(d.now()) {
						fatal(l.complete(ocispecs.Descriptor{Digest: lease.Digest}))
					}
				}
			},
		})
	})
}

// Exporters and importers at once, beside a collector that waits for nothing: each
// import finds all that it needs. The test fails when leases are not looked at.
func TestCollectorBesideExportersAndImporters(t *testing.T) {
	l := newLayout(t)
	must(t, l.export("0", nil, "first"))
	collector := l.open(0)
	end := time.Now().Add(2 * time.Second)
	var imports, swept atomic.Int64
	var group sync.WaitGroup
	for i := range 4 {
		tag := fmt.Sprint(i)
		group.Go(func() {
			for time.Now().Before(end) && !t.Failed() {
				if err := l.export(tag, nil, "base", fmt.Sprint("step ", rand.IntN(3)), fmt.Sprint("other ", rand.IntN(3))); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Duration(rand.IntN(40)) * time.Millisecond)
			}
		})
		group.Go(func() {
			d := l.open(0) // of another process
			for time.Now().Before(end) && !t.Failed() {
				lease, err := d.Acquire(context.Background(), Lease{Tag: tag, Mode: Import, TTL: time.Minute})
				if err != nil {
					t.Error(err)
					return
				}
				if lease.Digest != "" {
					time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
					if err := l.complete(ocispecs.Descriptor{Digest: lease.Digest}); err != nil {
						t.Errorf("import: %v", err)
					}
					imports.Add(1)
				}
				if _, err := d.Release(context.Background(), lease.ID); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
			}
		})
	}
	group.Go(func() {
		for time.Now().Before(end) && !t.Failed() {
			tags := listed(t, collector, "0", "1", "2", "3")
			if err := collector.Remove(context.Background(), tags, 0, func(string, int64) { swept.Add(1) }); err != nil {
				t.Error(err)
			}
			if err := collector.Sweep(context.Background(), true); err != nil {
				t.Error(err)
			}
		}
	})
	group.Wait()
	must(t, l.whole())
	t.Logf("%d imports, %d tags removed", imports.Load(), swept.Load())
	if imports.Load() < 20 || swept.Load() < 5 {
		t.Errorf("%d imports, %d tags removed: the test shows nothing", imports.Load(), swept.Load())
	}
	if _, err := os.Stat(filepath.Join(l.dir, "index.json")); err != nil {
		t.Error(err)
	}
}
