package gateway

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/identity"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kilnbuild/kiln/pkg/protocodec"
	"github.com/kilnbuild/kiln/pkg/testkit"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// heap is what is in use, in bytes.
func heap() int64 {
	runtime.GC()
	runtime.GC() // the first leaves what pools hold
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc) //nolint:gosec // far below
}

// raw makes calls with encoded requests, and does not keep these.
func (r *rig) raw(t *testing.T, calls int, method string, request func() []byte) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	conn := r.conn(t)
	var group sync.WaitGroup
	for range calls {
		stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method, callOptions()...)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.SendMsg(&rawcodec.Frame{Data: mem.BufferSlice{mem.SliceBuffer(request())}}); err != nil {
			t.Fatal(err)
		}
		group.Go(func() { _ = stream.RecvMsg(new(rawcodec.Frame)) })
	}
	return func() {
		cancel()
		group.Wait()
	}
}

// A Status that waits for its build keeps the ref alone of what its client sent.
func TestStatus_KeepsNothingButItsRefWhileItWaits(t *testing.T) {
	r := newRig(t)
	before := heap()
	const calls, size = 16, 3 << 20
	end := r.raw(t, calls, methodStatus, func() []byte {
		raw := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), []byte(identity.NewID()))
		return protowire.AppendBytes(protowire.AppendTag(raw, 99, protowire.BytesType), make([]byte, size))
	})
	defer end()
	testkit.Eventually(t, 10*time.Second, func() bool {
		r.gateway.routes.mu.Lock()
		defer r.gateway.routes.mu.Unlock()
		return len(r.gateway.routes.builds) == calls
	})
	if kept := heap() - before; kept > calls*size/4 {
		t.Errorf("%d calls keep %d MiB", calls, kept>>20)
	}
}

// The bound on what waits counts the bytes of requests. Decoded, they take many times as
// much, and are not kept.
func TestBuildsThatWait_KeepNoDecodedRequests(t *testing.T) {
	r := newRig(t)
	defer r.gate.hold()()
	before := heap()
	const builds = 4
	size := 0
	end := r.raw(t, builds, methodSolve, func() []byte {
		raw, err := protocodec.Marshal(&controlapi.SolveRequest{
			Ref: identity.NewID(), SourcePolicy: &spb.Policy{Rules: emptyRules(400_000)},
		})
		if err != nil {
			t.Fatal(err)
		}
		size = len(raw)
		return raw
	})
	defer end()
	r.unended(t, builds, build.Queued)
	testkit.Eventually(t, 10*time.Second, func() bool { return r.builds.Waiting() == builds })
	if kept := heap() - before; kept > int64(builds*size*3) {
		t.Errorf("%d builds of %d KiB keep %d KiB", builds, size>>10, kept>>10)
	}
}

func emptyRules(n int) []*spb.Rule {
	one := new(spb.Rule)
	rules := make([]*spb.Rule, n)
	for i := range rules {
		rules[i] = one
	}
	return rules
}
