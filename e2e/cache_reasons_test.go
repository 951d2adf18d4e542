package e2e_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
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

// bytesOnDisk is the bytes of a daemon's directory, without what is mounted in it.
func bytesOnDisk(t *testing.T, root string) (bytes int64) {
	t.Helper()
	var top syscall.Stat_t
	if err := syscall.Lstat(root, &top); err != nil {
		t.Fatal(err)
	}
	if err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		var stat syscall.Stat_t
		if err != nil || syscall.Lstat(path, &stat) != nil || stat.Dev != top.Dev {
			return nil //nolint:nilerr // it is gone meanwhile
		}
		bytes += stat.Blocks * 512
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return bytes
}

// What a daemon that was killed in a build left on its disk is in no record, and usage counts it all the same.
func TestUsage_AddsUpToTheDisk(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{Registries: []string{registry.Addr}}))(t)
	base := labtest.Must(image.PushBase(ctx, registry.Addr))(t)
	root := filepath.Join(daemon.Dir, "root")
	cfg := manual()
	cfg.Daemons = []*configv1.DaemonConfig{{Name: "local", Address: daemon.Addr, Root: root}}
	m := startCacheManager(t, l, cfg, nil)
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM " + base + "\nRUN head -c 20000000 /dev/urandom >/kept\nRUN head -c 40000000 /dev/urandom >/left && sleep 300\n"})
	before := bytesOnDisk(t, root)
	go func() { _, _ = lab.Exec(ctx, buildctl(t, daemon.Addr, dir)) }() // it ends with the daemon
	labtest.Eventually(t, time.Minute, "the second step's file", func() bool { return bytesOnDisk(t, root) > before+60_000_000 })
	if err := daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(ctx); err != nil {
		t.Fatal(err)
	}
	var records, uncounted, disk int64
	labtest.Eventually(t, 30*time.Second, "usage that adds up to the disk", func() bool {
		usage := m.usage(t).GetCaches()[0]
		records, uncounted = usage.GetTotal().GetSizeBytes(), 0
		for _, of := range usage.GetTypes() {
			if of.GetType() == cachemanagerv1.RecordType_RECORD_TYPE_UNCOUNTED {
				uncounted = of.GetTotal().GetSizeBytes()
			}
		}
		if usage.GetClockOffset() != nil {
			t.Errorf("the clock of this host is off by %s from itself", usage.GetClockOffset().AsDuration())
		}
		disk = bytesOnDisk(t, root)
		return disk > 0 && max(disk-records-uncounted, records+uncounted-disk) < disk/20
	})
	t.Logf("%d bytes of records, %d uncounted, %d on the disk", records, uncounted, disk)
	out := labtest.Must(lab.Exec(ctx, lab.Command{Path: labtest.Must(lab.Bin("kiln"))(t), Args: []string{"cache", "du"}, Env: []string{"KILN_CACHE_MANAGER=" + m.Addr}}))(t)
	for _, want := range []string{"records ", "uncounted ", "all "} {
		if !strings.Contains(out.Stdout, want) {
			t.Errorf("no row %s in\n%s", want, out.Stdout)
		}
	}
}

// A record that is in use is held by a build, or was used a moment ago: the plan names the one that it is.
func TestPlan_SaysWhoHoldsARecord(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{Registries: []string{registry.Addr}}))(t)
	base := labtest.Must(image.PushBase(ctx, registry.Addr))(t)
	m := startCacheManager(t, l, manual(), nil, daemon)
	held := func() (byBuild, byTime int) {
		_, all := m.plan(t, nil)
		for _, v := range all {
			switch {
			case v.GetReason() != cachemanagerv1.VerdictReason_VERDICT_REASON_IN_USE:
			case v.GetExplanation() == "a build uses it":
				byBuild++
			case strings.Contains(v.GetExplanation(), "s ago, "):
				byTime++
			default:
				t.Errorf("%s: %s", v.GetRecord().GetDescription(), v.GetExplanation())
			}
		}
		return byBuild, byTime
	}
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM " + base + "\nRUN --mount=type=cache,target=/c echo x >/c/x && sleep 3\n"})
	ended := make(chan error, 1)
	go func() {
		_, err := lab.Exec(ctx, buildctl(t, daemon.Addr, dir))
		ended <- err
	}()
	labtest.Eventually(t, time.Minute, "a record that a build uses", func() bool { n, _ := held(); return n > 0 })
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if byBuild, byTime := held(); byBuild > 0 || byTime == 0 {
		t.Errorf("right after the build, %d records are a build's and %d were used a moment ago", byBuild, byTime)
	}
}

// A configuration whose policy would empty most of the cache is held at the start, and applied once it is approved.
func TestPolicy_WaitsForApproval(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 3*time.Minute)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{}))(t)
	state := t.TempDir()
	start := func(age time.Duration) cacheManager {
		return startCacheManager(t, l, &configv1.CacheManagerConfig{
			StateDir: state, KeepAge: durationpb.New(age), Interval: durationpb.New(500 * time.Millisecond),
		}, nil, daemon)
	}
	m := start(48 * time.Hour)
	for _, name := range []string{"one", "two"} {
		dir := t.TempDir()
		labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM scratch\nCOPY " + name + " /\n", name: strings.Repeat(name, 100_000)})
		labtest.Must(lab.Exec(ctx, buildctl(t, daemon.Addr, dir)))(t)
	}
	all := len(m.records(t))
	labtest.Eventually(t, 10*time.Second, "a run", func() bool { return len(m.runs(t)) > 0 })
	if err := m.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1500 * time.Millisecond)
	m = start(time.Second) // 1s, in place of 1d
	kiln := func(args ...string) string {
		t.Helper()
		out := labtest.Must(lab.Exec(ctx, lab.Command{
			Path: labtest.Must(lab.Bin("kiln"))(t), Args: append([]string{"cache"}, args...), Env: []string{"KILN_CACHE_MANAGER=" + m.Addr},
		}))(t)
		return out.Stdout + out.Stderr
	}
	labtest.Eventually(t, 20*time.Second, "a policy that waits", func() bool {
		return strings.Contains(kiln("policy", "get"), "version 2 waits for approval, and version 1 is applied: it would remove")
	})
	labtest.Eventually(t, 10*time.Second, "the alarm", func() bool {
		return strings.Contains(scrape(t, m.Service), "kiln_cache_policy_held{") && strings.Contains(m.Output(), "would remove too much without approval")
	})
	time.Sleep(2 * time.Second) // runs go on
	if n := len(m.records(t)); n != all {
		t.Fatalf("%d of %d records are left, though nobody approved", n, all)
	}
	runs := m.runs(t)
	if r := runs[0]; r.GetPolicyVersion() != 1 || r.GetHeldPolicyVersion() != 2 || r.GetState() != cachemanagerv1.RunState_RUN_STATE_PARTIAL || len(runs) > 6 {
		t.Errorf("%d runs, the last: %v", len(runs), r)
	}
	if out := kiln("policy", "approve"); !strings.Contains(out, "version 2 approved, as version 3") {
		t.Errorf("%s", out)
	}
	labtest.Eventually(t, 20*time.Second, "an empty cache", func() bool { return len(m.records(t)) == 0 })
	if out := kiln("policy", "get"); strings.Contains(out, "waits") || !strings.Contains(out, "age: 1s") {
		t.Errorf("%s", out)
	}
}

// A build that goes on while the cache manager is away for longer than its lease lasts has the lease when it is back,
// also of a manifest that its tag has no more. The directory is found by another path, and its files stay its group's.
func TestLease_HoldsWhileTheCacheManagerIsAway(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{}))(t)
	base, link := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "link")
	if err := errors.Join(os.Mkdir(base, 0o755), os.Symlink(base, link)); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "cache")
	start := func() cacheManager {
		return startCacheManager(t, l, &configv1.CacheManagerConfig{
			Interval: durationpb.New(500 * time.Millisecond), Directories: []*configv1.CacheDirectory{{Path: dir, Grace: durationpb.New(0)}},
		}, nil, daemon)
	}
	m := start()
	acquire := func(m cacheManager, path string, mode cachemanagerv1.LeaseMode) *cachemanagerv1.Lease {
		t.Helper()
		return labtest.Must(m.api.AcquireLease(ctx, &cachemanagerv1.AcquireLeaseRequest{Directory: path, Mode: mode, Ttl: durationpb.New(8 * time.Second)}))(t).GetLease()
	}
	acquire(m, filepath.Join(link, "cache"), cachemanagerv1.LeaseMode_LEASE_MODE_EXPORT)
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("a lease made the directory: %v", err)
	}
	export := func(content string) {
		t.Helper()
		context := t.TempDir()
		labtest.Write(t, context, map[string]string{"Dockerfile": "FROM scratch\nCOPY in /\n", "in": content})
		labtest.Must(lab.Exec(ctx, buildctl(t, daemon.Addr, context, "--export-cache", "type=local,mode=max,dest="+dir)))(t)
	}
	export("one")
	index := filepath.Join(dir, "index.json")
	if err := errors.Join(os.Chown(index, 1234, 4321), os.Chmod(index, 0o664)); err != nil {
		t.Fatal(err)
	}
	lease := acquire(m, filepath.Join(link, "cache"), cachemanagerv1.LeaseMode_LEASE_MODE_IMPORT)
	export("two")
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(9 * time.Second)
	m = start()
	labtest.Eventually(t, 10*time.Second, "a run", func() bool { return len(m.runs(t)) > 0 && m.runs(t)[0].GetEndTime() != nil })
	renewed, err := m.api.RenewLease(ctx, &cachemanagerv1.RenewLeaseRequest{LeaseId: lease.GetId()})
	if err != nil || renewed.GetLease().GetDigest() != lease.GetDigest() || lease.GetDigest() == "" {
		t.Fatalf("%v, %v", renewed, err)
	}
	blob := filepath.Join(dir, "blobs", strings.Replace(lease.GetDigest(), ":", "/", 1))
	if _, err := os.Stat(blob); err != nil {
		t.Errorf("what the lease holds is gone: %v", err)
	}
	labtest.Must(m.api.ReleaseLease(ctx, &cachemanagerv1.ReleaseLeaseRequest{LeaseId: lease.GetId()}))(t)
	labtest.Eventually(t, 20*time.Second, "the end of what nothing holds", func() bool {
		_, err := os.Stat(blob)
		return os.IsNotExist(err)
	})
	if _, _, run, err := m.clean(ctx, &cachemanagerv1.CleanCacheRequest{Caches: []*cachemanagerv1.CacheRef{directoryRef(dir)}, All: true, Force: true}); err != nil || run.GetRemoved().GetRecords() != 1 {
		t.Fatalf("%v, %v", run, err)
	}
	var stat syscall.Stat_t
	if err := syscall.Lstat(index, &stat); err != nil || stat.Uid != 1234 || stat.Gid != 4321 || stat.Mode&0o777 != 0o664 {
		t.Errorf("index.json is %o of %d:%d now, %v", stat.Mode&0o777, stat.Uid, stat.Gid, err)
	}
	export("three") // BuildKit's client writes it again
}
