package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"sort"
	"time"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/moby/buildkit/client"
	"github.com/tonistiigi/fsutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func main() {
	ctx := context.Background()
	bk, err := client.New(ctx, "unix:///tmp/lead/b.sock")
	if err != nil {
		panic(err)
	}
	gw, err := client.New(ctx, "tcp://127.0.0.1:50551")
	if err != nil {
		panic(err)
	}
	conn, _ := grpc.NewClient("127.0.0.1:50551", grpc.WithTransportCredentials(insecure.NewCredentials()))
	bc := builderv1.NewBuilderServiceClient(conn)
	push := len(os.Args) > 1
	solve := func(c *client.Client) {
		fs, _ := fsutil.NewFS("/tmp/lead/ctx/base")
		opt := client.SolveOpt{Frontend: "dockerfile.v0", LocalMounts: map[string]fsutil.FS{"context": fs, "dockerfile": fs}, SharedKey: "x"}
		if push {
			opt.Exports = []client.ExportEntry{{Type: "image", Attrs: map[string]string{"name": "localhost:5500/base:1", "push": "true"}}}
		}
		ch := make(chan *client.SolveStatus)
		go func() {
			for range ch {
			}
		}()
		if _, err := c.Solve(ctx, nil, opt, ch); err != nil {
			panic(err)
		}
	}
	ours := func() {
		spec := &builderv1.BuildSpec{Context: &builderv1.Context{Kind: &builderv1.Context_Directory{Directory: &builderv1.DirectoryContext{Path: "/tmp/lead/ctx/base"}}}}
		if push {
			spec.Outputs = []*builderv1.Output{{Kind: &builderv1.Output_Registry{Registry: &builderv1.RegistryOutput{Tags: []string{"localhost:5500/base:1"}}}}}
		}
		s, err := bc.Build(ctx, &builderv1.BuildRequest{Spec: spec})
		if err != nil {
			panic(err)
		}
		for {
			r, err := s.Recv()
			if err == io.EOF {
				return
			}
			if err != nil {
				panic(err)
			}
			if o := r.GetEvent().GetOutcome(); o != nil && o.State != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
				panic(o.String())
			}
		}
	}
	fs := map[string]func(){"ours": ours, "go": func() { solve(bk) }, "gateway": func() { solve(gw) }}
	names := []string{"go", "gateway"}
	if os.Getenv("N") != "" {
		names = []string{os.Getenv("N")}
	}
	times := map[string][]float64{}
	for i := range 40 {
		for _, n := range names {
			t := time.Now()
			fs[n]()
			if i > 3 {
				times[n] = append(times[n], time.Since(t).Seconds()*1000)
			}
		}
	}
	for _, n := range names {
		sort.Float64s(times[n])
		fmt.Printf("%s min %.1f median %.1f max %.1f\n", n, times[n][0], times[n][len(times[n])/2], times[n][len(times[n])-1])
	}
}
