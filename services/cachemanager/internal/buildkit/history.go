package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/grpccodec"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// builds is the history of a daemon.
type builds struct {
	records    []cache.Record // of builds that have ended
	running    int            // builds that have not
	ahead      time.Duration  // of the daemon's clock
	unreadable int64
	why        error // of one that could not be read
}

func (b *builds) skip(err error) {
	b.unreadable++
	b.why = err
}

// history lists the builds of the daemon's history that have ended. A record that cannot be
// read is counted, and is no error; nor is the end of the list by one that the daemon cannot send.
func (d *Daemon) history(ctx context.Context) (builds, error) {
	var found builds
	asked := time.Now()
	stream, err := d.client.ControlClient().ListenBuildHistory(ctx, &controlapi.BuildHistoryRequest{EarlyExit: true},
		grpc.ForceCodecV2(skipping{skip: found.skip}))
	if err != nil {
		return found, err
	}
	header, err := stream.Header()
	if err != nil {
		return found, err
	}
	found.ahead = d.clock.measure(header, asked, time.Now())
	for {
		event, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return found, nil
		case err != nil && grpcerrors.Code(err) == codes.Internal:
			found.skip(err)
			return found, nil
		case err != nil:
			return found, err
		}
		found.add(event.GetRecord())
	}
}

func (b *builds) add(build *controlapi.BuildHistoryRecord) {
	switch ref := build.GetRef(); {
	case ref == "": // it was skipped
	case build.GetCompletedAt() == nil:
		b.running++
	case !utf8.ValidString(ref):
		b.skip(fmt.Errorf("the id of the build, %q, is not UTF-8", ref))
	default:
		b.records = append(b.records, historyRecord(build))
	}
}

// skipping is a codec that leaves a message empty which it cannot read, and says so.
type skipping struct {
	grpccodec.Codec
	skip func(error)
}

// Unmarshal implements encoding.CodecV2.
func (c skipping) Unmarshal(data mem.BufferSlice, v any) error {
	err := c.Codec.Unmarshal(data, v)
	if m, ok := v.(proto.Message); ok && err != nil {
		c.skip(err)
		proto.Reset(m)
		return nil
	}
	return err
}

func historyRecord(build *controlapi.BuildHistoryRecord) cache.Record {
	r := cache.Record{
		ID: cache.HistoryPrefix + build.GetRef(), Type: cache.History, Description: "build in the history",
		Created: build.GetCreatedAt().AsTime(), LastUsed: build.GetCompletedAt().AsTime(), UsageCount: 1,
		InUse: build.GetPinned(), Hold: cache.HeldByHistory,
	}
	if target := build.GetFrontendAttrs()["filename"]; target != "" {
		r.Description += " of " + text(target)
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
