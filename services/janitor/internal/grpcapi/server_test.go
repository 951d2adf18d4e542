package grpcapi

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/pkg/fault"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/check"
	"github.com/kilnbuild/kiln/services/janitor/internal/usage"
)

func TestResultToProto(t *testing.T) {
	latency, count, yes := time.Second, 3, true
	want := func(value func(*janitorv1.Check)) *janitorv1.Check {
		c := &janitorv1.Check{
			Name: "n", State: janitorv1.CheckState_CHECK_STATE_WARN, Message: "m", Remedy: "r", Duration: durationpb.New(time.Minute),
		}
		value(c)
		return c
	}
	tests := []struct {
		name string
		in   check.Result
		want *janitorv1.Check
	}{
		{"plain", check.Result{}, want(func(*janitorv1.Check) {})},
		{"latency", check.Result{Latency: &latency}, want(func(c *janitorv1.Check) {
			c.Value = &janitorv1.Check_Latency{Latency: durationpb.New(time.Second)}
		})},
		{"catalogue", check.Result{Repositories: &count}, want(func(c *janitorv1.Check) { c.Value = &janitorv1.Check_Repositories{Repositories: 3} })},
		{"delete", check.Result{DeleteEnabled: &yes}, want(func(c *janitorv1.Check) { c.Value = &janitorv1.Check_DeleteEnabled{DeleteEnabled: true} })},
		{"disk", check.Result{Disk: &check.Disk{Total: 9, Free: 4}}, want(func(c *janitorv1.Check) {
			c.Value = &janitorv1.Check_Disk{Disk: &janitorv1.Disk{TotalBytes: 9, FreeBytes: 4}}
		})},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.in.Name, test.in.State, test.in.Message, test.in.Remedy, test.in.Took = "n", check.Warn, "m", "r", time.Minute
			if diff := cmp.Diff(test.want, resultToProto(test.in), protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Each state of the domain has one in the contract, of the same name.
func TestStateToProto(t *testing.T) {
	for _, state := range check.States() {
		if got := stateToProto(state).String(); got != map[check.State]string{
			check.OK: "CHECK_STATE_OK", check.Unknown: "CHECK_STATE_UNKNOWN", check.Warn: "CHECK_STATE_WARN", check.Fail: "CHECK_STATE_FAIL",
		}[state] {
			t.Errorf("%s is %s", state, got)
		}
	}
}

func TestUsageToProto(t *testing.T) {
	snapshot := usage.Snapshot{
		Total: usage.Totals{
			Repositories: 1, Failed: 2, Tags: 3, Manifests: 4, Blobs: 5, DeduplicatedBytes: 6, SumOwnBytes: 7,
		},
		Storage: &usage.Storage{Blobs: 1, BlobBytes: 2, UntaggedBytes: 3, Uploads: 4, UploadBytes: 5, Quarantined: 8, DiskTotal: 6, DiskFree: 7},
	}
	want := &janitorv1.RegistryUsage{
		Repositories: 1, FailedRepositories: 2, Tags: 3, Manifests: 4, Blobs: 5, DeduplicatedBytes: 6, SumOwnBytes: 7,
		Storage: &janitorv1.StorageUsage{
			Blobs: 1, BlobBytes: 2, UntaggedBytes: 3, Uploads: 4, UploadBytes: 5, QuarantineBytes: 8, Disk: &janitorv1.Disk{TotalBytes: 6, FreeBytes: 7},
		},
	}
	if diff := cmp.Diff(want, totalToProto(snapshot), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if got := totalToProto(usage.Snapshot{}).GetStorage(); got != nil {
		t.Errorf("storage that is out of reach: %v", got)
	}
	unread := totalToProto(usage.Snapshot{Storage: &usage.Storage{Err: errors.New("denied")}}).GetStorage()
	if codes.Code(unread.GetError().GetCode()) != codes.Unavailable || unread.GetDisk() != nil { //nolint:gosec // a gRPC code
		t.Errorf("storage that cannot be read: %v", unread)
	}
}

func TestRepositoryToProto(t *testing.T) {
	in := usage.RepositoryUsage{
		Name: "a/b", Tags: 1, Manifests: 2, Blobs: 3, OwnBytes: 9, SharedBytes: 4, ExclusiveBytes: 5, Broken: 6,
		TagUsages: []usage.TagUsage{{Tag: usage.Tag{Name: "t", Digest: "sha256:0"}, OwnBytes: 7, ExclusiveBytes: 8}},
	}
	want := &janitorv1.RepositoryUsage{
		Repository: "a/b", Tags: 1, Manifests: 2, Blobs: 3, OwnBytes: 9, SharedBytes: 4, ExclusiveBytes: 5, BrokenManifests: 6,
	}
	if diff := cmp.Diff(want, repositoryToProto(in, false), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	want.TagUsages = []*janitorv1.TagUsage{{Tag: "t", Digest: "sha256:0", OwnBytes: 7, ExclusiveBytes: 8}}
	if diff := cmp.Diff(want, repositoryToProto(in, true), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	failed := repositoryToProto(usage.RepositoryUsage{Name: "x", Err: fault.New(fault.Unavailable, "REGISTRY_UNAVAILABLE", "no", "")}, true)
	if codes.Code(failed.GetError().GetCode()) != codes.Unavailable || failed.GetRepository() != "x" { //nolint:gosec // a gRPC code
		t.Errorf("%v", failed)
	}
}
