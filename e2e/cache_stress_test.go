package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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

// A daemon whose disk fills up gets room, and builds go on: by the watermark, long before
// the next run of the schedule, where the cache manager sees the disk; where only the
// daemon does, by what each run tells it. What is pinned stays.
func TestS4_FullDisk(t *testing.T) {
	t.Run("seen by the cache manager", func(t *testing.T) { fillDisk(t, true) })
	t.Run("seen by the daemon only", func(t *testing.T) { fillDisk(t, false) })
}

func fillDisk(t *testing.T, seen bool) {
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
	cfg.Daemons = []*configv1.DaemonConfig{{Name: "small", Address: daemon.Addr}}
	trigger := cachemanagerv1.RunTrigger_RUN_TRIGGER_FREE_DISK
	if seen {
		cfg.Daemons[0].Root = disk
	} else {
		cfg.Interval, trigger = durationpb.New(time.Second), cachemanagerv1.RunTrigger_RUN_TRIGGER_SCHEDULE
	}
	cfg.PolicyFile = policyFile(t, fmt.Sprintf("rules:\n- name: room\n  keep:\n    free_disk: {low_bytes: %d, high_bytes: %d}\n", low, high))
	m := startCacheManager(t, l, cfg, nil)
	build := func(i int) {
		dir := t.TempDir()
		data := make([]byte, 30<<20)
		for at := range data {
			data[at] = byte(i + at*7)
		}
		labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM scratch\nCOPY data /data\n", "data": string(data)})
		labtest.Must(lab.Exec(ctx, buildctl(t, daemon.Addr, dir)))(t)
	}
	build(0)
	var pinned string
	for _, r := range m.records(t) {
		if strings.Contains(r.GetDescription(), "COPY data /data") {
			pinned = r.GetId()
		}
	}
	labtest.Must(m.api.Pin(ctx, &cachemanagerv1.PinRequest{Target: &cachemanagerv1.PinRequest_Record{Record: &cachemanagerv1.RecordRef{
		Cache: &cachemanagerv1.CacheRef{Kind: &cachemanagerv1.CacheRef_Daemon{Daemon: "small"}}, Id: pinned,
	}}}))(t)
	for i := range 20 { // three times the disk
		build(i + 1)
		labtest.Eventually(t, 20*time.Second, "room on the disk", func() bool {
			var stat syscall.Statfs_t
			if err := syscall.Statfs(disk, &stat); err != nil {
				t.Fatal(err)
			}
			return stat.Bavail*uint64(stat.Bsize) >= low //nolint:gosec // a size
		})
	}
	byDisk := 0
	for _, r := range m.runs(t) {
		if r.GetTrigger() == trigger && r.GetRemoved().GetSizeBytes() > 0 {
			byDisk++
		}
	}
	if byDisk < 2 {
		t.Errorf("%d runs made room: %v", byDisk, m.runs(t))
	}
	if !slices.ContainsFunc(m.records(t), func(r *cachemanagerv1.Record) bool { return r.GetId() == pinned }) {
		t.Error("the pinned record is gone")
	}
	plan, _ := m.plan(t, nil)
	if seen {
		m.seesDisk(t, size, low)
	} else if rooms := plan.GetRooms(); len(rooms) != 1 || rooms[0].GetLowBytes() != low || rooms[0].GetHighBytes() != high || rooms[0].GetRule() != "room" {
		t.Errorf("the plan says of room: %v", plan)
	}
}

// seesDisk checks what usage says of the one daemon's disk.
func (m cacheManager) seesDisk(t *testing.T, size, low int64) {
	t.Helper()
	usage := m.usage(t).GetCaches()[0]
	var uncounted int64
	for _, of := range usage.GetTypes() {
		if of.GetType() == cachemanagerv1.RecordType_RECORD_TYPE_UNCOUNTED {
			uncounted = of.GetTotal().GetSizeBytes()
		}
	}
	if uncounted < 100_000 || uncounted > size { // the daemon's databases
		t.Errorf("usage says of what is in no record: %d bytes", uncounted)
	}
	if disk := usage.GetDisk(); disk.GetTotalBytes() != size || disk.GetFreeBytes() < low {
		t.Errorf("usage says of the disk: %v", disk)
	}
}
