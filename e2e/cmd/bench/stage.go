package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/buildkit/client"
	"github.com/tonistiigi/fsutil"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// stage is what the benchmarks run on: a registry, one daemon, a builder in front
// of it, and a directory to build, which never changes.
type stage struct {
	lab             *lab.Lab
	daemon, builder string
	registry, dir   string
	base            string // image that has a shell
	buildctl        string
	buildxBin       string
	builderPID      int
	api             builderv1.BuilderServiceClient
	bk              *client.Client
}

// startStage starts everything. What it returns must be closed, also when there is
// an error.
func startStage(ctx context.Context) (*stage, error) {
	l, err := lab.New()
	if err != nil {
		return nil, err
	}
	s := &stage{lab: l, dir: filepath.Join(l.Dir, "src", "app")}
	if s.buildctl, err = lab.Bin("buildctl"); err != nil {
		return s, err
	}
	if s.buildxBin, err = lab.Bin("buildx"); err != nil {
		return s, err
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return s, fmt.Errorf("%w", err)
	}
	stack, err := l.StartStack(ctx, lab.StackOptions{
		// As fast as it can: the daemon else drops what a step writes beyond 200 KiB a second.
		Buildkitd: lab.BuildkitdOptions{Env: []string{"BUILDKIT_STEP_LOG_MAX_SIZE=-1", "BUILDKIT_STEP_LOG_MAX_SPEED=-1"}},
		// As many at once as the peer is asked for.
		Builder: &configv1.BuilderConfig{
			AllowedRoots: []string{filepath.Dir(s.dir)}, MaxRunningBuilds: 64,
			// The same kind of socket as the daemon's, so that the difference is Kiln's alone.
			Server: &configv1.ServerConfig{Listen: "unix://" + filepath.Join(l.Dir, "builder.sock")},
		},
	})
	if err != nil {
		return s, err
	}
	s.builderPID = stack.Builder.PID()
	s.daemon, s.builder, s.registry = stack.Buildkitd.Addr, stack.Builder.Addr, stack.Registry.Addr
	if s.base, err = image.PushBase(ctx, s.registry); err != nil {
		return s, err
	}
	if err := s.writeApp(); err != nil {
		return s, err
	}
	if err := s.createBuildx(ctx); err != nil {
		return s, err
	}
	conn, err := lab.Dial(s.builder)
	if err != nil {
		return s, err
	}
	l.OnClose("connection to the builder", func(context.Context) error { return conn.Close() })
	s.api = builderv1.NewBuilderServiceClient(conn)
	if s.bk, err = client.New(ctx, s.daemon); err != nil {
		return s, fmt.Errorf("%w", err)
	}
	l.OnClose("connection to buildkitd", func(context.Context) error { return s.bk.Close() })
	return s, nil
}

// writeApp writes a small project: some files, a COPY and two RUN.
func (s *stage) writeApp() error {
	files := map[string]string{
		"Dockerfile": "FROM " + s.base + "\nWORKDIR /app\nCOPY src src\nRUN cat src/* >all\nRUN sha256sum all >sum\n",
	}
	for i := range 20 {
		files[fmt.Sprintf("src/%02d.txt", i)] = fmt.Sprintln("line", i)
	}
	for name, content := range files {
		path := filepath.Join(s.dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			return fmt.Errorf("%w", err)
		}
	}
	return nil
}

// tag is where a side pushes to: one of its own, so that no side finds the tag
// moved by the other.
func (s *stage) tag(side string) string { return s.registry + "/bench-" + side + ":1" }

// createBuildx tells buildx of the daemon, without Kiln in between.
func (s *stage) createBuildx(ctx context.Context) error {
	_, err := lab.Exec(ctx, s.buildxCommand("create", "--name", "bench", "--driver", "remote", s.daemon))
	return err
}

func (s *stage) buildxCommand(args ...string) lab.Command {
	return lab.Command{Path: s.buildxBin, Args: args, Env: []string{"BUILDX_CONFIG=" + filepath.Join(s.lab.Dir, "buildx")}}
}

// buildx runs an unmodified docker buildx on the daemon.
func (s *stage) buildx(ctx context.Context, push bool) error {
	args := []string{"build", "--builder", "bench", "--progress", "quiet", "--provenance=false", s.dir}
	if push {
		args = append(args, "--push", "-t", s.tag("buildx"))
	}
	_, err := lab.Exec(ctx, s.buildxCommand(args...))
	return err
}

// buildRPC calls Build on the connection that stays open.
func (s *stage) buildRPC(ctx context.Context, push bool) error {
	spec := &builderv1.BuildSpec{
		Project: "bench",
		Context: &builderv1.Context{Kind: &builderv1.Context_Directory{Directory: &builderv1.DirectoryContext{Path: s.dir}}},
	}
	if push {
		spec.Outputs = []*builderv1.Output{{Kind: &builderv1.Output_Registry{
			Registry: &builderv1.RegistryOutput{Tags: []string{s.tag("rpc")}},
		}}}
	}
	return s.rpcEvents(ctx, spec, func(*builderv1.BuildEvent) {})
}

// goClient solves the same with BuildKit's own client, whose connection stays
// open, and with a shared key, as the builder has: without one the daemon would
// ask for the whole context each time.
func (s *stage) goClient(ctx context.Context, push bool) error {
	files, err := fsutil.NewFS(s.dir)
	if err != nil {
		return fmt.Errorf("%w", err)
	}
	opt := client.SolveOpt{
		Frontend: "dockerfile.v0", SharedKey: "bench",
		LocalMounts: map[string]fsutil.FS{"context": files, "dockerfile": files},
	}
	if push {
		opt.Exports = []client.ExportEntry{{
			Type: client.ExporterImage, Attrs: map[string]string{"name": s.tag("go-client"), "push": "true"},
		}}
	}
	return s.solve(ctx, opt, func(*client.SolveStatus) {})
}

// clientStatuses solves a Dockerfile with BuildKit's own client, and gives each
// status to see.
func (s *stage) clientStatuses(ctx context.Context, dockerfile string, see func(*client.SolveStatus)) error {
	dir, err := os.MkdirTemp(s.lab.Dir, "context-")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644)
	}
	if err != nil {
		return fmt.Errorf("%w", err)
	}
	files, err := fsutil.NewFS(dir)
	if err != nil {
		return fmt.Errorf("%w", err)
	}
	return s.solve(ctx, client.SolveOpt{
		Frontend: "dockerfile.v0", LocalMounts: map[string]fsutil.FS{"context": files, "dockerfile": files},
	}, see)
}

func (s *stage) solve(ctx context.Context, opt client.SolveOpt, see func(*client.SolveStatus)) error {
	statuses := make(chan *client.SolveStatus)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for status := range statuses {
			see(status)
		}
	}()
	_, err := s.bk.Solve(ctx, nil, opt, statuses)
	<-done
	if err != nil {
		return fmt.Errorf("%w", err)
	}
	return nil
}

// buildctlTo runs an unmodified buildctl against an address.
func (s *stage) buildctlTo(addr string) work {
	side := "buildctl"
	if addr != s.daemon {
		side = "gateway"
	}
	return func(ctx context.Context, push bool) error {
		args := []string{
			"--addr", addr, "build", "--progress", "quiet", "--frontend", "dockerfile.v0",
			"--local", "context=" + s.dir, "--local", "dockerfile=" + s.dir,
		}
		if push {
			args = append(args, "--output", "type=image,push=true,name="+s.tag(side))
		}
		_, err := lab.Exec(ctx, lab.Command{Path: s.buildctl, Args: args})
		return err
	}
}
