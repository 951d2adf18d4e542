package e2e_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/random"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
)

// fill writes a file until its file system is full.
func fill(t *testing.T, dir string) {
	t.Helper()
	file := labtest.Must(os.OpenFile(filepath.Join(dir, "filler"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600))(t)
	for _, size := range []int{1 << 20, 4096, 1} {
		for err := error(nil); err == nil; {
			_, err = file.Write(make([]byte, size))
		}
	}
	labtest.Must(0, file.Close())(t)
}

func free(t *testing.T, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	labtest.Must(0, unix.Statfs(dir, &st))(t)
	return int64(st.Bavail) * st.Bsize
}

// On a disk without a free byte, which the registry, its quarantine and the janitor's state share,
// runs work: what was in quarantine for long enough goes first, and more can be removed.
func TestRun_OnAFullDisk(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	disk := t.TempDir()
	labtest.Must(0, unix.Mount("tmpfs", disk, "tmpfs", 0, "size=48m"))(t)
	t.Cleanup(func() { labtest.Must(0, unix.Unmount(disk, unix.MNT_DETACH))(t) })
	root, state := filepath.Join(disk, "storage"), filepath.Join(disk, "state")
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{Storage: root}))(t)
	const large = 10 << 20
	push := func(ref string) { putImage(t, registry, ref, labtest.Must(random.Image(large, 1))(t)) }
	push("cache/a:main")
	putImage(t, registry, "app:v1", small(t))
	// run runs on a disk that is full, some days after all was pushed, and says what is free before
	// and after it.
	run := func(day int, isFull bool) (r *janitorv1.Run, before, after int64) {
		t.Helper()
		j := keeper(t, l, registry, time.Duration(day)*24*time.Hour, func(cfg *configv1.JanitorConfig) { cfg.StateDir = state })
		if isFull {
			fill(t, disk)
		}
		before = free(t, disk)
		o, err := j.tryRun(ctx, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}, Force: true})
		if err != nil || o.finished.GetState() != janitorv1.RunState_RUN_STATE_SUCCEEDED || o.finished.GetRemoved().GetSizeBytes() < large {
			t.Fatalf("on day %d: %v, %v", day, o.finished, err)
		}
		labtest.Must(0, j.Stop(ctx))(t)
		return o.finished, before, free(t, disk)
	}
	run(8, false)
	push("cache/b:main")
	if _, before, after := run(11, true); before > 0 || after < large-1<<20 {
		t.Errorf("what was in quarantine for three days: %d bytes were free before, and %d after", before, after)
	}
	push("cache/c:main")
	if _, before, after := run(12, true); before > 0 || after > large {
		t.Errorf("what was in quarantine for a day: %d bytes were free before, and %d after", before, after)
	}
	labtest.Must(0, pullWhole(ctx, registry.Addr, "app:v1"))(t)
}
