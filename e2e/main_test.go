// Package e2e_test tests Kiln from the outside, on real daemons, real RUN steps
// and a real registry.
package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.lab != nil {
		if err := shared.lab.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code) //nolint:forbidigo // The end of TestMain.
}

// stack is a registry, a buildkitd and a builder, with a base image.
type stack struct {
	*lab.Stack
	lab *lab.Lab
	// base is the reference of an image with busybox.
	base string
	// src is the one allowed root.
	src string
	api builderv1.BuilderServiceClient
}

// shared is the stack of all tests that break nothing. The first test that asks
// for it starts it; it stops with the last test.
var shared struct {
	once  sync.Once
	lab   *lab.Lab
	stack *stack
	err   error
}

// sharedStack returns the stack that tests share. A test that fails shows its logs.
func sharedStack(t *testing.T) *stack {
	t.Helper()
	shared.once.Do(func() {
		if shared.lab, shared.err = lab.New(); shared.err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		shared.stack, shared.err = startStack(ctx, shared.lab, sharedOptions())
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(shared.lab.Logs(30))
		}
	})
	return shared.stack
}

// sharedOptions grant what the tests of single fields ask for: some rights in the
// builder's policy and fewer in the daemon, images of the lab's registries as
// frontends, and sources on loopback.
func sharedOptions() lab.StackOptions {
	return lab.StackOptions{
		Builder: &configv1.BuilderConfig{Policy: &configv1.BuildPolicyConfig{
			Entitlements:   []string{"network.host", "security.insecure"},
			Frontends:      []string{"127.0.0.1:*"},
			SbomGenerators: []string{"127.0.0.1:*"},
			Sources:        sourcesFrom("127.0.0.0/8").GetSources(),
		}},
		Buildkitd: lab.BuildkitdOptions{Entitlements: []string{"network.host"}},
	}
}

// ownStack starts a stack for one test, which may break it.
func ownStack(t *testing.T, opts lab.StackOptions) *stack {
	t.Helper()
	return labtest.Must(startStack(labtest.Context(t, 2*time.Minute), labtest.New(t), opts))(t)
}

// sourcesFrom is a policy that lets sources come from networks that are not public.
func sourcesFrom(networks ...string) *configv1.BuildPolicyConfig {
	return &configv1.BuildPolicyConfig{Sources: &configv1.SourcesConfig{Networks: networks}}
}

func startStack(ctx context.Context, l *lab.Lab, opts lab.StackOptions) (*stack, error) {
	s := &stack{lab: l, src: filepath.Join(l.Dir, "src")}
	if err := os.MkdirAll(s.src, 0o755); err != nil {
		return nil, err
	}
	if opts.Builder == nil {
		opts.Builder = &configv1.BuilderConfig{}
	}
	opts.Builder.AllowedRoots = append(opts.Builder.AllowedRoots, s.src)
	var err error
	if s.Stack, err = l.StartStack(ctx, opts); err != nil {
		return nil, err
	}
	if s.base, err = image.PushBase(ctx, s.Registry.Addr); err != nil {
		return nil, err
	}
	s.api, err = dial(l, s.Builder.Addr)
	return s, err
}

// dial opens a connection to a builder that is closed with the lab.
func dial(l *lab.Lab, addr string, opts ...grpc.DialOption) (builderv1.BuilderServiceClient, error) {
	conn, err := lab.Dial(addr, opts...)
	if err != nil {
		return nil, err
	}
	l.OnClose("connection", func(context.Context) error { return conn.Close() })
	return builderv1.NewBuilderServiceClient(conn), nil
}

// ref is a reference in the stack's registry, of a repository of this test.
func (s *stack) ref(name string) string { return s.Registry.Addr + "/" + name + ":1" }

// dir makes a directory with files below the allowed root, for this test.
func (s *stack) dir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := labtest.Must(os.MkdirTemp(s.src, "src-"))(t) //nolint:usetesting // It must lie below the allowed root.
	labtest.Write(t, dir, files)
	return dir
}

// result is what a Build call came to.
type result struct {
	events  []*builderv1.BuildEvent
	outcome *builderv1.Outcome
	err     error // Of the call.
}

// build calls Build and reads it to its end, within two minutes.
func (s *stack) build(t *testing.T, spec *builderv1.BuildSpec) result {
	t.Helper()
	return readBuild(labtest.Context(t, 2*time.Minute), s.api, spec)
}

func readBuild(ctx context.Context, api builderv1.BuilderServiceClient, spec *builderv1.BuildSpec) result {
	stream, err := api.Build(ctx, &builderv1.BuildRequest{Spec: spec})
	if err != nil {
		return result{err: err}
	}
	return collect(stream.Recv)
}

// collect reads a stream of events to its end.
func collect[M interface{ GetEvent() *builderv1.BuildEvent }](recv func() (M, error)) result {
	var r result
	for {
		res, err := recv()
		if errors.Is(err, io.EOF) {
			return r
		}
		if err != nil {
			r.err = err
			return r
		}
		r.events = append(r.events, res.GetEvent())
		r.outcome = res.GetEvent().GetOutcome()
	}
}

// succeed builds, and fails the test when the build does not succeed.
func (s *stack) succeed(t *testing.T, spec *builderv1.BuildSpec) result {
	t.Helper()
	r := s.build(t, spec)
	if r.err != nil {
		t.Fatalf("Build: %v", r.err)
	}
	if r.outcome.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
		t.Fatalf("outcome %v\n%s", r.outcome, r.log())
	}
	return r
}

// fail builds, and fails the test unless the build ends in FAILED. It returns the
// typed detail of the outcome.
func (s *stack) fail(t *testing.T, spec *builderv1.BuildSpec) (result, *errorsv1.BuildFailure) {
	t.Helper()
	r := s.build(t, spec)
	if r.err != nil {
		t.Fatalf("Build: %v", r.err)
	}
	if r.outcome.GetState() != builderv1.BuildState_BUILD_STATE_FAILED {
		t.Fatalf("outcome %v, want FAILED", r.outcome)
	}
	failure := detail[*errorsv1.BuildFailure](r.outcome.GetError())
	if failure == nil {
		t.Fatalf("no BuildFailure in %v", r.outcome.GetError())
	}
	return r, failure
}

// log is all that the steps of a build wrote.
func (r result) log() string {
	var all []byte
	for _, e := range r.events {
		all = append(all, e.GetLog().GetData()...)
	}
	return string(all)
}

// ran names the COPY and RUN steps that were not cached. (A FROM is never said to
// be cached, though its layers are there.)
func (r result) ran() []string {
	var names []string
	for _, e := range r.events {
		step := e.GetStep()
		if step.GetState() == builderv1.StepState_STEP_STATE_DONE && (strings.Contains(step.GetName(), "] RUN ") || strings.Contains(step.GetName(), "] COPY ")) {
			names = append(names, step.GetName())
		}
	}
	return names
}

// id is the build's id.
func (r result) id() string { return r.events[0].GetStarted().GetBuildId() }

// file pulls an image and returns one of its files.
func file(t *testing.T, ref, platform, path string) string {
	t.Helper()
	img := labtest.Must(image.Pull(labtest.Context(t, time.Minute), ref, platform))(t)
	return string(labtest.Must(image.ReadFile(img, path))(t))
}
