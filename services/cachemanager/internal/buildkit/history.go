package buildkit

import (
	"context"
	"errors"
	"io"

	controlapi "github.com/moby/buildkit/api/services/control"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// history lists the builds of the daemon's history that have ended.
func (d *Daemon) history(ctx context.Context) ([]cache.Record, error) {
	stream, err := d.client.ControlClient().ListenBuildHistory(ctx, &controlapi.BuildHistoryRequest{EarlyExit: true})
	if err != nil {
		return nil, err
	}
	var records []cache.Record
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return records, nil
		}
		if err != nil {
			return nil, err
		}
		if build := event.GetRecord(); build.GetCompletedAt() != nil {
			records = append(records, historyRecord(build))
		}
	}
}

func historyRecord(build *controlapi.BuildHistoryRecord) cache.Record {
	r := cache.Record{
		ID: cache.HistoryPrefix + build.GetRef(), Type: cache.History, Description: "build in the history",
		Created: build.GetCreatedAt().AsTime(), LastUsed: build.GetCompletedAt().AsTime(), UsageCount: 1,
		InUse: build.GetPinned(), // by a person, who keeps it
	}
	if target := build.GetFrontendAttrs()["filename"]; target != "" {
		r.Description += " of " + target
	}
	for _, blob := range blobsOf(build) {
		r.Bytes += blob.GetSize()
	}
	return r
}

// blobsOf are what the daemon keeps of a build besides the record itself.
func blobsOf(build *controlapi.BuildHistoryRecord) []*controlapi.Descriptor {
	blobs := []*controlapi.Descriptor{build.GetLogs(), build.GetTrace(), build.GetExternalError()}
	for _, result := range append([]*controlapi.BuildResultInfo{build.GetResult()}, results(build)...) {
		blobs = append(blobs, result.GetAttestations()...)
	}
	return blobs
}

func results(build *controlapi.BuildHistoryRecord) []*controlapi.BuildResultInfo {
	var all []*controlapi.BuildResultInfo
	for _, result := range build.GetResults() {
		all = append(all, result)
	}
	return all
}
