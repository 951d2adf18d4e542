package e2e_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/session/grpchijack"
	"github.com/tonistiigi/fsutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	"github.com/kilnbuild/kiln/pkg/testkit"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/builder"
)

// oneSlot is a builder that runs one build at a time.
func oneSlot() *configv1.BuilderConfig { return &configv1.BuilderConfig{MaxRunningBuilds: 1} }

// Unmodified clients wait for their turn for longer than any of BuildKit's clocks,
// say where they stand and why, and then build. One that goes away leaves the
// queue.
func TestGatewayClientsWaitForTheirTurn(t *testing.T) {
	s := ownStack(t, lab.StackOptions{Builder: oneSlot()})
	// For longer than a frontend's ping, a session's preface and a job's lookup may take.
	const held = 25 * time.Second
	long := s.start(t, dockerfile(fmt.Sprintf("FROM %s\nRUN echo begun; sleep %d; echo %s\n", s.base, int(held.Seconds()), unique())), "").GetId()
	s.running(t, long, "begun")

	gone := labtest.Must(s.lab.Run(s.clients(t)["buildctl"](s.dir(t, map[string]string{"Dockerfile": s.endlessText()}), s.ref("gone"))))(t)
	leaver := s.gatewayBuild(t, s.ref("gone"), queued)
	processes := map[string]*lab.Process{}
	for name, command := range s.clients(t) {
		ref := s.ref("waits-" + strings.ReplaceAll(name, " ", "-"))
		dir := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\nRUN echo my-turn; echo " + unique() + " >/x\n"})
		processes[ref] = labtest.Must(s.lab.Run(command(dir, ref)))(t)
		if rec := s.gatewayBuild(t, ref, queued); rec.GetQueue().GetPosition() == 0 || rec.GetQueue().GetReason() == "" {
			t.Errorf("%s waits: %v", name, rec)
		}
	}
	if err := gone.Kill(); err != nil {
		t.Fatal(err)
	}
	s.ended(t, leaver.GetId(), builderv1.BuildState_BUILD_STATE_CANCELLED)
	s.ended(t, long, builderv1.BuildState_BUILD_STATE_SUCCEEDED)
	for ref, process := range processes {
		rec := s.gatewayBuild(t, ref, queued, running, builderv1.BuildState_BUILD_STATE_SUCCEEDED)
		s.ended(t, rec.GetId(), builderv1.BuildState_BUILD_STATE_SUCCEEDED)
		labtest.Eventually(t, soon, "the client succeeds", func() bool { return process.ExitCode() == 0 })
		for _, want := range []string{"[internal] waiting for a build slot (place ", "max_running_builds", "my-turn"} {
			if out := process.Output(); !strings.Contains(out, want) {
				t.Errorf("%s: no %q in\n%s", ref, want, out)
			}
		}
		if waited := s.get(t, rec.GetId()).GetOutcome().GetTimes().GetQueue().AsDuration(); waited < 15*time.Second {
			t.Errorf("%s waited %s", ref, waited)
		}
	}
}

// A queue that is full refuses a client in words that it shows.
func TestGatewayQueueIsFull(t *testing.T) {
	cfg := oneSlot()
	cfg.Admission = &configv1.AdmissionConfig{MaxQueued: 1}
	s := ownStack(t, lab.StackOptions{Builder: cfg})
	s.running(t, s.start(t, s.endless(), "").GetId(), "begun")
	s.start(t, s.endless(), "")
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\n"})
	start := time.Now()
	out, err := lab.Exec(labtest.Context(t, time.Minute), buildctl(t, "tcp://"+s.Builder.Addr, dir))
	if err == nil || !strings.Contains(out.Stderr, "1 build wait") || !strings.Contains(out.Stderr, "try again") {
		t.Errorf("%v", err)
	}
	if took := time.Since(start); took > soon {
		t.Errorf("it took %s", took)
	}
}

// Eight targets of a bake at once with two slots, and targets that need one
// another's results with one: each is a build, and all succeed.
func TestBakeThroughTheGateway(t *testing.T) {
	for name, tc := range map[string]struct {
		slots  uint32
		linked bool
	}{"at once": {2, false}, "linked": {1, true}} {
		t.Run(name, func(t *testing.T) {
			s := ownStack(t, lab.StackOptions{Builder: &configv1.BuilderConfig{MaxRunningBuilds: tc.slots}})
			const targets = 8
			var file, group strings.Builder
			for i := range targets {
				from, contexts := s.base, ""
				if tc.linked && i > 0 {
					from, contexts = "parent", fmt.Sprintf("  contexts = { parent = \"target:t%d\" }\n", (i-1)/2)
				}
				fmt.Fprintf(&group, "%q,", fmt.Sprint("t", i))
				fmt.Fprintf(&file, "target \"t%d\" {\n  dockerfile-inline = \"FROM %s\\nRUN echo %d %s >/t%d\\n\"\n  output = [\"type=image,push=true,name=%s\"]\n%s}\n",
					i, from, i, unique(), i, s.ref(fmt.Sprint("bake-", i)), contexts)
			}
			fmt.Fprintf(&file, "group \"default\" { targets = [%s] }\n", group.String())
			dir := s.dir(t, map[string]string{"docker-bake.hcl": file.String()})
			command := s.buildx(t)("bake", "--builder", "kiln", "--progress", "plain", "-f", filepath.Join(dir, "docker-bake.hcl"))
			command.Dir = dir
			labtest.Must(lab.Exec(labtest.Context(t, 2*time.Minute), command))(t)
			for i := range targets {
				rec := s.gatewayBuild(t, s.ref(fmt.Sprint("bake-", i)), builderv1.BuildState_BUILD_STATE_SUCCEEDED)
				if rec.GetSteps().GetTotal() == 0 {
					t.Errorf("target %d: %v", i, rec)
				}
			}
		})
	}
}

// A caller cannot use the session of another: its files, secrets and credentials.
func TestSessionsOfOthersAreOutOfReach(t *testing.T) {
	s := sharedStack(t)
	addr, as := tlsBuilder(t, s)
	ctx := labtest.Context(t, time.Minute)
	ann := labtest.Must(client.New(ctx, "tcp://"+addr, as("ann")...))(t)
	defer func() { _ = ann.Close() }()
	eve := labtest.Must(client.New(ctx, "tcp://"+addr, as("eve")...))(t)
	defer func() { _ = eve.Close() }()

	id := openSession(ctx, t, ann, s.dir(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY secret /\n", "secret": canary}))
	if err := bareSolve(ctx, ann, id, s.ref("anns")); err != nil {
		t.Errorf("ann's own build: %v", err)
	}
	if err := bareSolve(ctx, eve, id, s.ref("eves")); status.Code(err) != codes.NotFound {
		t.Errorf("eve's build with ann's session: %v", err)
	}
	own := openSession(ctx, t, eve, s.dir(t, map[string]string{"Dockerfile": "FROM scratch\n"}))
	if err := bareSolve(ctx, eve, own, s.ref("eves"), "local-sessionid:context", id); status.Code(err) != codes.NotFound {
		t.Errorf("eve's build with ann's files: %v", err)
	}
	if err := bareSolve(ctx, ann, id, s.ref("anns")); err != nil {
		t.Errorf("ann's build after that: %v", err)
	}
}

// openSession opens a session that gives a directory, until ctx ends, and returns
// its id.
func openSession(ctx context.Context, t *testing.T, c *client.Client, dir string) string {
	t.Helper()
	files := labtest.Must(fsutil.NewFS(dir))(t)
	s := labtest.Must(session.NewSession(ctx, ""))(t)
	s.Allow(filesync.NewFSSyncProvider(filesync.StaticDirSource{"context": files, "dockerfile": files}))
	ended := make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer close(ended)
		_ = s.Run(ctx, grpchijack.Dialer(c.ControlClient()))
	}()
	t.Cleanup(func() {
		cancel()
		_ = s.Close()
		<-ended
	})
	return s.ID()
}

// bareSolve builds the Dockerfile of a session by a Solve alone, with further
// attributes of the frontend.
func bareSolve(ctx context.Context, c *client.Client, sessionID, ref string, attrs ...string) error {
	req := &controlapi.SolveRequest{
		Ref: identity.NewID(), Session: sessionID, Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{},
		Exporters: []*controlapi.Exporter{{Type: "image", Attrs: map[string]string{"name": ref}}},
	}
	for i := 0; i < len(attrs); i += 2 {
		req.FrontendAttrs[attrs[i]] = attrs[i+1]
	}
	_, err := c.ControlClient().Solve(ctx, req)
	return err
}

// tlsBuilder runs a builder in this process that asks its callers for certificates,
// on the stack's daemon. as says who a client is.
func tlsBuilder(t *testing.T, s *stack) (addr string, as func(name string) []client.ClientOpt) {
	t.Helper()
	ca, dir := testkit.NewCA(t, "ca"), t.TempDir()
	pair := func(name string) (cert, key string) {
		cert, key = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem")
		ca.Issue(t, cert, key, name)
		return cert, key
	}
	cert, key := pair("server")
	cfg := lab.BuilderConfig(&configv1.BuilderConfig{StateDir: t.TempDir()}, s.Buildkitd.Addr, s.Registry.Addr)
	cfg.Server = &configv1.ServerConfig{
		Listen: "127.0.0.1:0", HttpListen: "off", Tls: &configv1.ServerTLS{CertFile: cert, KeyFile: key, ClientCaFile: ca.File},
	}
	service := labtest.Must(builder.New(t.Context(), cfg, telemetry.Discard()))(t)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- service.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return service.Addr(), func(name string) []client.ClientOpt {
		cert, key := pair(name)
		return []client.ClientOpt{client.WithServerConfig("localhost", ca.File), client.WithCredentials(cert, key)}
	}
}
