package enforce_test

import (
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/storage"
)

func TestProf(t *testing.T) {
	dir := os.Getenv("BIG")
	pol, _ := policy.Resolve(policy.Default(7 * 24 * time.Hour))
	cpu, _ := os.Create("/tmp/cpu.prof")
	runs := 5
	if os.Getenv("ONCE") != "" {
		runs = 1
	}
	_ = pprof.StartCPUProfile(cpu)
	for range runs {
		runtime.GC()
		s := storage.New(dir)
		start := time.Now()
		r, err := s.Inventory(t.Context(), inventory.Look{})
		if err != nil {
			t.Fatal(err)
		}
		look := time.Since(start)
		p := plan.Make(plan.Input{Registry: r, Policy: pol, Now: time.Now(), Numbers: &plan.Numbers{}})
		fmt.Println(r.Took, look, time.Since(start)-look, "total", time.Since(start), len(p.Verdicts))
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		fmt.Println("heap", m.HeapAlloc>>20, "sys", m.Sys>>20, "gcs", m.NumGC)
		if os.Getenv("ONCE") != "" {
			runtime.GC()
			h, _ := os.Create("/tmp/heap.prof")
			_ = pprof.WriteHeapProfile(h)
			h.Close()
		}
		runtime.KeepAlive(s)
		runtime.KeepAlive(r)
		runtime.KeepAlive(p)
	}
	pprof.StopCPUProfile()
}
