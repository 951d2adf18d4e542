package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// Eight builds at a time go on while all that may go is removed again and again: none
// fails, each has the content that it should, and what is pinned stays.
func TestS4_BuildsGoOnWhileEverythingIsPruned(t *testing.T) {
	const loops = 8
	span := soakTime(t, time.Minute)
	l := labtest.New(t)
	ctx := labtest.Context(t, span+2*time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{Registries: []string{registry.Addr}}))(t)
	base := labtest.Must(image.PushBase(ctx, registry.Addr))(t)
	m := startCacheManager(t, l, &configv1.CacheManagerConfig{
		Interval: durationpb.New(100 * time.Millisecond), PolicyFile: policyFile(t, "rules:\n- name: all\n  keep: {records: 0}\n"),
	}, nil, daemon)

	labtest.Must(m.api.Pin(ctx, &cachemanagerv1.PinRequest{Target: &cachemanagerv1.PinRequest_Match{
		Match: &cachemanagerv1.Match{Description: "pinned by the test"},
	}}))(t)
	pinned := t.TempDir()
	labtest.Write(t, pinned, map[string]string{"Dockerfile": "FROM " + base + "\nRUN echo pinned by the test >/pinned\n"})
	labtest.Must(lab.Exec(ctx, buildctl(t, daemon.Addr, pinned)))(t)

	var builds atomic.Int64
	var done int
	soaked(t, &done)
	var group sync.WaitGroup
	end := time.Now().Add(span)
	for loop := range loops {
		group.Go(func() {
			for i := 0; time.Now().Before(end) && !t.Failed(); i++ {
				want := fmt.Sprintf("%d %d", loop%3, i%5) // some builds are those of another loop
				if got, err := buildOnce(t, daemon, base, want); err != nil || got != want {
					t.Errorf("loop %d, build %d: %q, want %q: %v", loop, i, got, want, err)
					return
				}
				builds.Add(1)
			}
		})
	}
	group.Wait()
	done = int(builds.Load())
	freed, _ := strconv.Atoi(metric(t, m.Service, "kiln_cache_freed_records_total", `reason="records"`))
	t.Logf("%d builds, %d records were removed meanwhile", builds.Load(), freed)
	if builds.Load() < loops || freed < loops {
		t.Errorf("%d builds, %d records removed: that was no load", builds.Load(), freed)
	}
	if out := labtest.Must(lab.Exec(ctx, buildctl(t, daemon.Addr, pinned)))(t); !strings.Contains(out.Stderr, "CACHED") {
		t.Errorf("what was pinned is gone:\n%s", out.Stderr)
	}
	if failed := metric(t, m.Service, "kiln_cache_runs_total", `outcome="failed"`); failed != "" {
		t.Errorf("%s runs failed:\n%s", failed, m.Tail(20))
	}
}

// buildOnce builds something that says want, and returns what its result says.
func buildOnce(t *testing.T, daemon *lab.Buildkitd, base, want string) (string, error) {
	dir := t.TempDir()
	text := fmt.Sprintf("FROM %s AS build\nCOPY in /in\nRUN --mount=type=cache,target=/cache cat /in >/out && date >>/cache/log\nFROM scratch\nCOPY --from=build /out /out\n", base)
	for name, content := range map[string]string{"Dockerfile": text, "in": want} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return "", err
		}
	}
	out := filepath.Join(dir, "result")
	if _, err := lab.Exec(labtest.Context(t, time.Minute), buildctl(t, daemon.Addr, dir, "--output", "type=local,dest="+out)); err != nil {
		return "", err
	}
	got, err := os.ReadFile(filepath.Join(out, "out"))
	return string(got), err
}

// A daemon whose disk fills up gets room by the watermark, long before the next run of
// the schedule, and builds go on.
func TestS4_FullDisk(t *testing.T) {
	const size, low, high = 400 << 20, 150 << 20, 250 << 20
	disk := t.TempDir() // before the lab, which unmounts it in the end
	l := labtest.New(t)
	ctx := labtest.Context(t, 3*time.Minute)
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatal(err)
	}
	l.OnClose("small disk", func(context.Context) error { return syscall.Unmount(disk, syscall.MNT_DETACH) })
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{Root: disk}))(t)
	cfg := manual()
	cfg.Daemons = []*configv1.DaemonConfig{{Name: "small", Address: daemon.Addr, Root: disk}}
	cfg.PolicyFile = policyFile(t, fmt.Sprintf("rules:\n- name: room\n  keep:\n    free_disk: {low_bytes: %d, high_bytes: %d}\n", low, high))
	m := startCacheManager(t, l, cfg, nil)
	for i := range 20 { // three times the disk
		dir := t.TempDir()
		data := make([]byte, 30<<20)
		for at := range data {
			data[at] = byte(i + at*7)
		}
		labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM scratch\nCOPY data /data\n", "data": string(data)})
		labtest.Must(lab.Exec(ctx, buildctl(t, daemon.Addr, dir)))(t)
		labtest.Eventually(t, 20*time.Second, "room on the disk", func() bool {
			var stat syscall.Statfs_t
			if err := syscall.Statfs(disk, &stat); err != nil {
				t.Fatal(err)
			}
			return stat.Bavail*uint64(stat.Bsize) >= low //nolint:gosec // a size
		})
	}
	runs := labtest.Must(m.api.ListRuns(ctx, &cachemanagerv1.ListRunsRequest{PageSize: 1000}))(t).GetRuns()
	byDisk := 0
	for _, r := range runs {
		if r.GetTrigger() == cachemanagerv1.RunTrigger_RUN_TRIGGER_FREE_DISK && r.GetRemoved().GetSizeBytes() > 0 {
			byDisk++
		}
	}
	if byDisk < 2 {
		t.Errorf("%d runs made room: %v", byDisk, runs)
	}
	var uncounted int64
	for _, of := range m.usage(t).GetCaches()[0].GetTypes() {
		if of.GetType() == cachemanagerv1.RecordType_RECORD_TYPE_UNCOUNTED {
			uncounted = of.GetTotal().GetSizeBytes()
		}
	}
	if uncounted < 100_000 || uncounted > size { // the daemon's databases
		t.Errorf("usage says of what is in no record: %d bytes", uncounted)
	}
	if usage := m.usage(t).GetCaches()[0].GetDisk(); usage.GetTotalBytes() != size || usage.GetFreeBytes() < low {
		t.Errorf("usage says of the disk: %v", usage)
	}
}
