package attack

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"sync"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// repeat calls do from n goroutines until ctx ends.
func repeat(ctx context.Context, n int, do func(ctx context.Context)) {
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for ctx.Err() == nil {
				do(ctx)
			}
		})
	}
	wg.Wait()
}

// nested is a graph whose one operation is a build of the same, to a depth.
func nested(depth int) *pb.Definition {
	def := &pb.Definition{}
	for range depth {
		raw, err := proto.Marshal(&pb.Op{Op: &pb.Op_Build{Build: &pb.BuildOp{Def: def}}})
		if err != nil {
			panic(err) // of a message that is made here
		}
		def = &pb.Definition{Def: [][]byte{raw}}
	}
	return def
}

// nestedGraphs sends graphs that hold graphs: by Solve, as an input, and by RPC.
func nestedGraphs(ctx context.Context, s *Target) error {
	conn, err := s.dial(ctx)
	if err != nil {
		return err
	}
	control := controlapi.NewControlClient(conn)
	deep, deeper := nested(1500), nested(4500)
	raw, err := proto.Marshal(deeper)
	if err != nil {
		return fmt.Errorf("%w", err)
	}
	repeat(ctx, 4, func(ctx context.Context) {
		_, _ = control.Solve(ctx, &controlapi.SolveRequest{Ref: identity.NewID(), Definition: deep})
		_, _ = control.Solve(ctx, &controlapi.SolveRequest{
			Ref: identity.NewID(), Frontend: "dockerfile.v0", FrontendInputs: map[string]*pb.Definition{"a": deeper, "b": deeper},
		})
		_, _ = control.Solve(ctx, &controlapi.SolveRequest{Ref: identity.NewID(), Definition: deeper, Internal: true})
		_, _ = builderv1.NewBuilderServiceClient(conn).StartBuild(ctx, &builderv1.StartBuildRequest{Spec: &builderv1.BuildSpec{Definition: raw}})
	})
	return nil
}

// names sends builds with as many names as a message holds.
func names(ctx context.Context, s *Target) error {
	conn, err := s.dial(ctx)
	if err != nil {
		return err
	}
	control := controlapi.NewControlClient(conn)
	many := strings.Repeat("a,", 6<<20)
	long := strings.Repeat("a", 12<<20)
	repeat(ctx, 3, func(ctx context.Context) {
		for _, name := range []string{many, long} {
			_, _ = control.Solve(ctx, &controlapi.SolveRequest{
				Ref: identity.NewID(), Frontend: "dockerfile.v0",
				Exporters: []*controlapi.Exporter{{Type: "image", Attrs: map[string]string{"name": name}}},
			})
		}
		_, _ = control.Solve(ctx, &controlapi.SolveRequest{Ref: long, Frontend: "dockerfile.v0"})
		_, _ = control.Solve(ctx, &controlapi.SolveRequest{
			Ref: identity.NewID(), Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"build-arg:X": long},
		})
	})
	return nil
}

// manyStreams opens 10,000 calls on one connection that wait for a build which never comes.
func manyStreams(ctx context.Context, s *Target) error {
	conn, err := s.dial(ctx)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			for i := 0; i < 100 && ctx.Err() == nil; i++ {
				stream, err := controlapi.NewControlClient(conn).Status(ctx, &controlapi.StatusRequest{Ref: identity.NewID()})
				if err == nil && i%10 == 0 {
					_, _ = stream.Header()
				}
			}
		})
	}
	wg.Wait()
	<-ctx.Done()
	return nil
}

// slowReaders watch a build that says much, and read nothing of it.
func slowReaders(ctx context.Context, s *Target) error {
	conn, err := s.dial(ctx)
	if err != nil {
		return err
	}
	started, err := builderv1.NewBuilderServiceClient(conn).StartBuild(ctx, &builderv1.StartBuildRequest{
		Spec: Inline("FROM " + s.Base + "\nRUN echo " + identity.NewID() + "; seq 1 400000\n"),
	})
	if err != nil {
		return fmt.Errorf("StartBuild: %w", err)
	}
	id := started.GetBuild().GetId()
	for range 200 {
		conn, err := s.dial(ctx, grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10))
		if err != nil {
			return err
		}
		_, _ = builderv1.NewBuilderServiceClient(conn).WatchBuild(ctx, &builderv1.WatchBuildRequest{BuildId: id})
		_, _ = controlapi.NewControlClient(conn).Status(ctx, &controlapi.StatusRequest{Ref: id})
	}
	<-ctx.Done()
	return nil
}

// longStepNames builds graphs whose steps have names of 1 MB.
func longStepNames(ctx context.Context, s *Target) error {
	conn, err := s.dial(ctx)
	if err != nil {
		return err
	}
	control := controlapi.NewControlClient(conn)
	state := llb.Scratch()
	for i := range 6 {
		state = state.File(llb.Mkdir(fmt.Sprintf("/%d", i), 0o755), llb.WithCustomName(strings.Repeat("n", 1<<20)))
	}
	def, err := state.Marshal(ctx)
	if err != nil {
		return fmt.Errorf("%w", err)
	}
	raw, err := proto.Marshal(def.ToPB())
	if err != nil {
		return fmt.Errorf("%w", err)
	}
	repeat(ctx, 3, func(ctx context.Context) {
		_, _ = control.Solve(ctx, &controlapi.SolveRequest{Ref: identity.NewID(), Definition: def.ToPB(), Cache: &controlapi.CacheOptions{}})
		_, _ = builderv1.NewBuilderServiceClient(conn).StartBuild(ctx, &builderv1.StartBuildRequest{Spec: &builderv1.BuildSpec{Definition: raw, NoCache: true}})
	})
	return nil
}

// endlessUploads send contexts that do not end.
func endlessUploads(ctx context.Context, s *Target) error {
	conn, err := s.dial(ctx)
	if err != nil {
		return err
	}
	api := builderv1.NewBuilderServiceClient(conn)
	repeat(ctx, 4, func(ctx context.Context) {
		stream, err := api.UploadContext(ctx)
		if err != nil {
			return
		}
		_ = stream.Send(&builderv1.UploadContextRequest{Piece: &builderv1.UploadContextRequest_Header{Header: &builderv1.UploadHeader{Project: "hostile"}}})
		piece := make([]byte, 1<<20)
		copy(piece, tarHeader(1<<40))
		for {
			if err := stream.Send(&builderv1.UploadContextRequest{Piece: &builderv1.UploadContextRequest_Data{Data: piece}}); err != nil {
				break
			}
			_, _ = rand.Read(piece)
		}
		_, _ = stream.CloseAndRecv()
	})
	return nil
}

// manyRefs starts builds that cannot end well, by the thousand, and asks for others.
func manyRefs(ctx context.Context, s *Target) error {
	conn, err := s.dial(ctx)
	if err != nil {
		return err
	}
	control := controlapi.NewControlClient(conn)
	repeat(ctx, 64, func(ctx context.Context) {
		go func() {
			stream, err := control.Status(ctx, &controlapi.StatusRequest{Ref: identity.NewID()})
			if err == nil {
				_, _ = stream.Recv()
			}
		}()
		_, _ = control.Solve(ctx, &controlapi.SolveRequest{
			Ref: identity.NewID(), Session: identity.NewID(), Frontend: "dockerfile.v0", Cache: &controlapi.CacheOptions{},
		})
	})
	return nil
}

// largeMetadata sends headers as large as a client can.
func largeMetadata(ctx context.Context, s *Target) error {
	conn, err := s.dial(ctx)
	if err != nil {
		return err
	}
	value := strings.Repeat("v", 8<<10)
	var pairs []string
	for i := range 2000 {
		pairs = append(pairs, fmt.Sprintf("x-%d", i), value)
	}
	repeat(ctx, 4, func(ctx context.Context) {
		_, _ = controlapi.NewControlClient(conn).Info(metadata.AppendToOutgoingContext(ctx, pairs...), &controlapi.InfoRequest{})
	})
	return nil
}
