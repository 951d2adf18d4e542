package buildkit

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	apitypes "github.com/moby/buildkit/api/types"
	"google.golang.org/grpc"

	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// busy answers Info, and ListWorkers as long as it is not busy.
type busy struct {
	controlapi.UnimplementedControlServer
	is atomic.Bool
}

func (*busy) Info(context.Context, *controlapi.InfoRequest) (*controlapi.InfoResponse, error) {
	return &controlapi.InfoResponse{}, nil
}

func (b *busy) ListWorkers(ctx context.Context, _ *controlapi.ListWorkersRequest) (*controlapi.ListWorkersResponse, error) {
	if b.is.Load() {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	return &controlapi.ListWorkersResponse{Record: []*apitypes.WorkerRecord{{ID: "w"}}}, nil
}

// A daemon that is too busy for a new call and answers those that it has is alive; one that
// answers none is not.
func TestCheck_TakesOtherAnswersForLife(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", t.TempDir()+"/d.sock")
	if err != nil {
		t.Fatal(err)
	}
	server, control := grpc.NewServer(), &busy{}
	controlapi.RegisterControlServer(server, control)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l)
	}()
	d, err := Dial(t.Context(), &configv1.DaemonConfig{Name: "d", Address: "unix://" + l.Addr().String()}, Options{}, telemetry.Discard())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = d.Close()
		server.Stop()
		<-served
	}()
	check := func(meanwhile func()) error {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		time.AfterFunc(100*time.Millisecond, meanwhile)
		_, err := d.Check(ctx)
		return err
	}
	nothing := func() {}
	talks := func() { _, _ = controlapi.NewControlClient(d.Conn()).Info(t.Context(), &controlapi.InfoRequest{}) }
	control.is.Store(true)
	if check(talks) == nil {
		t.Error("it never answered a check, and is alive")
	}
	control.is.Store(false)
	if err := check(nothing); err != nil {
		t.Fatal(err)
	}
	control.is.Store(true)
	if err := check(talks); err != nil {
		t.Errorf("it answers others: %v", err)
	}
	if check(nothing) == nil {
		t.Error("it answers nothing, and is alive")
	}
	d.answer.Store(&answer{at: time.Now().Add(-2 * busyFor)})
	if check(talks) == nil {
		t.Error("it has answered no check for two minutes, and is alive")
	}
}
