package buildkit

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/client"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

func TestRecordOf(t *testing.T) {
	made := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	used := made.Add(time.Hour)
	tests := []struct {
		name string
		in   client.UsageInfo
		want cache.Record
	}{
		{
			name: "all fields",
			in: client.UsageInfo{
				ID: "a", Mutable: true, InUse: true, Size: 7, CreatedAt: made, LastUsedAt: &used, UsageCount: 3,
				Parents: []string{"p"}, Description: "d", RecordType: client.UsageRecordTypeCacheMount, Shared: true,
			},
			want: cache.Record{
				ID: "a", Mutable: true, InUse: true, Bytes: 7, Created: made, LastUsed: used, UsageCount: 3,
				Parents: []string{"p"}, Description: "d", Type: cache.CacheMount, Shared: true,
			},
		},
		{
			name: "never used, without a type",
			in:   client.UsageInfo{ID: "b", CreatedAt: made},
			want: cache.Record{ID: "b", Created: made, Type: cache.Regular},
		},
		{
			name: "a type of a newer daemon",
			in:   client.UsageInfo{ID: "c", RecordType: "exec.something"},
			want: cache.Record{ID: "c", Type: cache.Unknown},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, recordOf(test.in)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Each id passes exactly one of the filters.
func TestShardsCoverEveryIDOnce(t *testing.T) {
	ids := []string{"0a", "9", "a", "m12", "zz", "-x", "Upper", "ü"}
	for _, id := range ids {
		passed := 0
		for _, filter := range shards() {
			quoted, ok := strings.CutPrefix(filter, "id~=")
			if !ok {
				t.Fatalf("filter %s", filter)
			}
			if regexp.MustCompile(strings.Trim(quoted, `"`)).MatchString(id) {
				passed++
			}
		}
		if passed != 1 {
			t.Errorf("id %q passes %d filters", id, passed)
		}
	}
}

func TestExplain(t *testing.T) {
	d := &Daemon{name: "one", address: "unix:///run/one.sock"}
	late, cancelLate := context.WithTimeout(t.Context(), 0)
	defer cancelLate()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	tests := []struct {
		name   string
		ctx    context.Context
		err    error
		text   string // in the line for people
		remedy string
	}{
		{"away", t.Context(), status.Error(codes.Unavailable, "connection refused"), `daemon "one" at unix:///run/one.sock does not answer`, "start buildkitd"},
		{"no right", t.Context(), status.Error(codes.Unavailable, "dial unix: permission denied"), "does not answer", `"buildkit"`},
		{"hangs", late, status.Error(codes.DeadlineExceeded, "late"), "did not list its cache in time", "log"},
		{"its own fault", t.Context(), status.Error(codes.Internal, "bolt is broken"), "bolt is broken", "log"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := d.explain(test.ctx, test.err, "list its cache")
			if fault.KindOf(err) != fault.Unavailable {
				t.Errorf("kind %s", fault.KindOf(err))
			}
			if line := fault.Line(err); !strings.Contains(line, test.text) || !strings.Contains(line, test.remedy) {
				t.Errorf("%s", line)
			}
		})
	}
	if err := d.explain(cancelled, status.Error(codes.Canceled, "x"), "y"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := d.explain(cancelled, nil, "y"); err != nil {
		t.Errorf("no error: %v", err)
	}
}
