package grpcapi

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/pkg/fault"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/enforce"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/usage"
)

func TestUsageToProto(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	totals := usage.Totals{Records: 2, Bytes: 30, SharedBytes: 10, InUseRecords: 1, InUseBytes: 20, OldestUse: at}
	all := []usage.OfDaemon{
		{Daemon: "a", Snapshot: usage.Snapshot{Time: at, Total: totals, Types: []usage.OfType{{Type: cache.CacheMount, Totals: totals}}}},
		{Daemon: "b", Err: fault.New(fault.Unavailable, "DAEMON_UNAVAILABLE", "away", "start it")},
	}
	server := NewServer(usage.NewCollector[usage.Daemon](nil), enforce.Policy{KeepAge: time.Hour, KeepBytes: 99})
	got := server.usageToProto(all)

	daemon := func(name string) *cachemanagerv1.CacheRef {
		return &cachemanagerv1.CacheRef{Kind: &cachemanagerv1.CacheRef_Daemon{Daemon: name}}
	}
	total := &cachemanagerv1.Totals{
		Records: 2, SizeBytes: 30, SharedBytes: 10, ReclaimableBytes: 10, InUseRecords: 1, InUseBytes: 20,
		OldestUseTime: timestamppb.New(at),
	}
	limit := int64(99)
	if code := codes.Code(got.GetCaches()[1].GetError().GetCode()); code != codes.Unavailable { //nolint:gosec // a gRPC code
		t.Errorf("code of the daemon that is away: %s", code)
	}
	got.Caches[1].Error = nil
	want := &cachemanagerv1.Usage{
		Total: total,
		Caches: []*cachemanagerv1.CacheUsage{
			{
				Cache: daemon("a"), Time: timestamppb.New(at), Total: total, LimitBytes: &limit, LimitAge: durationpb.New(time.Hour),
				Types: []*cachemanagerv1.TypeUsage{{Type: cachemanagerv1.RecordType_RECORD_TYPE_EXEC_CACHE_MOUNT, Total: total}},
			},
			{Cache: daemon("b")},
		},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

// Every type that the domain has, but the unknown one, has its own in the contract.
func TestTypeToProto(t *testing.T) {
	seen := map[cachemanagerv1.RecordType]cache.Type{}
	for _, kind := range cache.Types() {
		got := typeToProto(kind)
		if other, twice := seen[got]; twice {
			t.Errorf("%s and %s are both %s", kind, other, got)
		}
		seen[got] = kind
		if unset := got == cachemanagerv1.RecordType_RECORD_TYPE_UNSPECIFIED; unset != (kind == cache.Unknown) {
			t.Errorf("%s is %s", kind, got)
		}
	}
}

func TestDaemonsOf(t *testing.T) {
	names, err := daemonsOf([]*cachemanagerv1.CacheRef{{Kind: &cachemanagerv1.CacheRef_Daemon{Daemon: "a"}}})
	if err != nil || !cmp.Equal(names, []string{"a"}) {
		t.Errorf("%v, %v", names, err)
	}
	_, err = daemonsOf([]*cachemanagerv1.CacheRef{{Kind: &cachemanagerv1.CacheRef_Directory{Directory: "/var/cache/x"}}})
	if fault.KindOf(err) != fault.NotFound {
		t.Errorf("directory: %v", err)
	}
}
