package buildkit

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// The offset is as good as the call was quick, and it does not move with each measurement: records are
// compared by the times that it corrects.
func TestOffset_IsStable(t *testing.T) {
	var o offset
	asked := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		name        string
		ahead, took time.Duration
		header      string // in place of the time
		want        time.Duration
	}{
		{"equal clocks", 0, 20 * time.Millisecond, "", 0},
		{"within the blur", 900 * time.Millisecond, 20 * time.Millisecond, "", 0},
		{"ahead", 3 * time.Hour, 20 * time.Millisecond, "", 3 * time.Hour},
		{"nearly as before", 3*time.Hour + 300*time.Millisecond, 20 * time.Millisecond, "", 3 * time.Hour},
		{"by a slow call", 3*time.Hour + 4*time.Second, 10 * time.Second, "", 3 * time.Hour},
		{"not told", 0, 0, "none", 3 * time.Hour},
		{"not a time", 0, 0, "noon", 3 * time.Hour},
		{"set", -5 * time.Minute, 20 * time.Millisecond, "", -5 * time.Minute},
		{"equal again", 0, 20 * time.Millisecond, "", 0},
	} {
		header := metadata.Pairs("buildkit-current-timestamp", asked.Add(c.took/2).Add(c.ahead).Format(time.RFC3339Nano))
		switch c.header {
		case "none":
			header = nil
		case "noon":
			header = metadata.Pairs("buildkit-current-timestamp", "noon")
		}
		if got := o.measure(header, asked, asked.Add(c.took)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// Who holds a record is told by what is known: not every record in use is a build's.
func TestHold_NamesTheReason(t *testing.T) {
	ended := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	began := ended.Add(-200 * time.Millisecond)
	for name, c := range map[string]struct {
		record cache.Record
		builds bool
		inUse  bool
		want   cache.Hold
	}{
		"a build":            {cache.Record{InUse: true, LastUsed: ended}, true, true, cache.HeldByBuild},
		"no build":           {cache.Record{InUse: true, LastUsed: ended.Add(-time.Hour)}, false, true, cache.HeldWithoutBuild},
		"used just now":      {cache.Record{LastUsed: ended.Add(-500 * time.Millisecond)}, false, true, cache.HeldByLastUse},
		"mutable, listed":    {cache.Record{Mutable: true, LastUsed: ended.Add(-100 * time.Millisecond)}, false, true, cache.HeldByListing},
		"mutable, used":      {cache.Record{Mutable: true, LastUsed: ended.Add(-500 * time.Millisecond)}, false, true, cache.HeldByLastUse},
		"used a minute ago":  {cache.Record{LastUsed: ended.Add(-time.Minute)}, true, false, cache.HeldByBuild},
		"never used, and so": {cache.Record{}, true, false, cache.HeldByBuild},
	} {
		hold(&c.record, began, ended, c.builds)
		if c.record.InUse != c.inUse || c.record.Hold != c.want {
			t.Errorf("%s: %t, %d", name, c.record.InUse, c.record.Hold)
		}
	}
}

// What is in no record is measured: databases, and snapshots that nothing has a record of.
func TestUncounted_IncludesWhatHasNoRecord(t *testing.T) {
	root := t.TempDir()
	write := func(name string, bytes int) string {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, bytes), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("cache.db", 100_000)
	write("runc-overlayfs/content/ingest/x/data", 50_000)
	recorded := write("runc-overlayfs/snapshots/snapshots/1/fs/file", 1_000_000)
	write("runc-overlayfs/snapshots/snapshots/2/fs/left by a killed build", 3_000_000)
	if err := os.Link(recorded, filepath.Join(root, "runc-overlayfs/snapshots/snapshots/2/fs/link")); err != nil {
		t.Fatal(err)
	}
	m := &meter{root: root}
	t.Cleanup(m.close)
	if bytes := m.uncounted(t.Context(), 1_000_000); bytes < 3_150_000 || bytes > 3_300_000 {
		t.Errorf("%d bytes are in no record", bytes)
	}
	m = &meter{root: root}
	t.Cleanup(m.close)
	if bytes := m.uncounted(t.Context(), 100_000_000); bytes < 150_000 || bytes > 200_000 {
		t.Errorf("with records that count blobs twice, %d bytes are in no record", bytes)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if bytes := m.uncounted(cancelled, 0); bytes == 0 {
		t.Error("the figure of before is lost")
	}
}
