package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// A daemon whose steps containerd runs, beside one whose steps runc runs: both build what is
// asked through Kiln, and what one has put into the registry's cache the other finds there.
func TestS11_ContainerdWorkerBesideOCIWorker(t *testing.T) {
	oci := ownStack(t, lab.StackOptions{})
	socket := labtest.Must(oci.lab.StartContainerd(labtest.Context(t, time.Minute)))(t)
	daemon := labtest.Must(oci.lab.StartBuildkitd(labtest.Context(t, time.Minute), lab.BuildkitdOptions{
		Containerd: socket, Registries: []string{oci.Registry.Addr},
	}))(t)
	builder := labtest.Must(oci.lab.StartBuilder(labtest.Context(t, time.Minute), lab.BuilderConfig(nil, daemon.Addr, oci.Registry.Addr), lab.ServiceOptions{}))(t)

	for addr, want := range map[string]string{oci.Buildkitd.Addr: "oci", daemon.Addr: "containerd"} {
		c := labtest.Must(client.New(labtest.Context(t, time.Minute), addr))(t)
		workers := labtest.Must(c.ListWorkers(labtest.Context(t, time.Minute)))(t)
		if len(workers) != 1 || workers[0].Labels["org.mobyproject.buildkit.worker.executor"] != want {
			t.Errorf("the workers of %s are %v, want one of %s", addr, workers, want)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	dir := oci.dir(t, map[string]string{"Dockerfile": "FROM " + oci.base + "\nRUN cat /proc/self/cgroup >/cgroup; head -c 32 /dev/urandom | od -An -tx1 >/once\n"})
	// Two tags of one image have one cache.
	ref := func(tag string) string { return oci.Registry.Addr + "/workers:" + tag }
	build := func(addr, tag string) outcome {
		return readOutcome(t, labtest.Must(lab.Exec(labtest.Context(t, 2*time.Minute), lab.Command{
			Path: labtest.Must(lab.Bin("kiln"))(t),
			Args: []string{
				"build-registry", dir, dir, ref(tag), "--push", "--project", "workers", "--cache-repository", oci.Registry.Addr + "/cache",
				"--format", "json", "--progress", "quiet", "--builder", addr,
			},
		}))(t))
	}
	first := build(builder.Addr, "by-containerd")
	second := build(oci.Builder.Addr, "by-oci")
	if first.CachedSteps >= first.TotalSteps || second.CachedSteps != second.TotalSteps {
		t.Errorf("the first build has %+v, the second on the other worker %+v", first, second)
	}
	if a, b := file(t, ref("by-containerd"), "", "/once"), file(t, ref("by-oci"), "", "/once"); a != b || len(a) < 64 {
		t.Errorf("the layers are %q and %q", a, b)
	}
}

// At most max_builds of a daemon run at once, and at most max-parallelism steps of all of them.
func TestS11_ConcurrencyHolds(t *testing.T) {
	const builds, most, steps = 6, 3, 2
	l := labtest.New(t)
	registry := labtest.Must(l.StartRegistry(labtest.Context(t, time.Minute), lab.RegistryOptions{}))(t)
	daemon := labtest.Must(l.StartBuildkitd(labtest.Context(t, time.Minute), lab.BuildkitdOptions{MaxParallelism: steps, Registries: []string{registry.Addr}}))(t)
	cfg := lab.BuilderConfig(&configv1.BuilderConfig{}, daemon.Addr, registry.Addr)
	cfg.Daemons[0].MaxBuilds = most
	b := labtest.Must(l.StartBuilder(labtest.Context(t, time.Minute), cfg, lab.ServiceOptions{}))(t)
	conn := labtest.Must(lab.Dial(b.Addr))(t)
	defer func() { _ = conn.Close() }()
	s := &stack{Stack: &lab.Stack{Registry: registry, Buildkitd: daemon, Builder: b}, lab: l, api: builderv1.NewBuilderServiceClient(conn)}
	s.base = labtest.Must(image.PushBase(labtest.Context(t, time.Minute), registry.Addr))(t)

	ids := make([]string, builds)
	for i := range ids {
		// Two steps that could run at once, each of which says when it ran.
		spec := dockerfile(fmt.Sprintf(`FROM %[1]s AS a
RUN cut -d" " -f1 /proc/uptime >/from; sleep 0.4; cut -d" " -f1 /proc/uptime >/to; echo %[2]d
FROM %[1]s AS b
RUN cut -d" " -f1 /proc/uptime >/from; sleep 0.4; cut -d" " -f1 /proc/uptime >/to; echo other %[2]d
FROM scratch
COPY --from=a /from /to /a/
COPY --from=b /from /to /b/
`, s.base, i), s.ref(fmt.Sprintf("s11-%d", i)))
		ids[i] = s.start(t, spec, "").GetId()
	}
	var running, ran []span
	for i, id := range ids {
		s.ended(t, id, builderv1.BuildState_BUILD_STATE_SUCCEEDED)
		record := s.get(t, id)
		running = append(running, span{record.GetStartTime().AsTime().UnixNano(), record.GetEndTime().AsTime().UnixNano()})
		for _, of := range []string{"/a", "/b"} {
			ran = append(ran, span{uptime(t, s.ref(fmt.Sprintf("s11-%d", i)), of+"/from"), uptime(t, s.ref(fmt.Sprintf("s11-%d", i)), of+"/to")})
		}
	}
	if got := overlap(running); got > most || got < 2 {
		t.Errorf("%d builds ran at once, at most %d may", got, most)
	}
	if got := overlap(ran); got > steps || got < 2 {
		t.Errorf("%d steps ran at once, at most %d may", got, steps)
	}
}

type span struct{ from, to int64 }

// overlap is how many spans overlap, at most.
func overlap(all []span) (most int) {
	for _, a := range all {
		n := 0
		for _, b := range all {
			if b.from <= a.from && a.from < b.to {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

// uptime is a time that a step wrote down, in hundredths of a second.
func uptime(t *testing.T, ref, path string) int64 {
	t.Helper()
	return int64(100 * labtest.Must(strconv.ParseFloat(strings.TrimSpace(file(t, ref, "", path)), 64))(t))
}

// The steps of a daemon have the memory of the cgroup that its configuration names: one that
// takes more is ended, its build fails with the exit code, and the daemon goes on.
func TestS11_MemoryOfStepsIsBounded(t *testing.T) {
	const limit = 64 << 20
	parent := fmt.Sprintf("kiln-e2e-%d", os.Getpid())
	dir, file := filepath.Join("/sys/fs/cgroup/memory", parent), "memory.limit_in_bytes"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil { // cgroup v2
		dir, file = filepath.Join("/sys/fs/cgroup", parent), "memory.max"
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.RemoveCgroups(context.Background(), parent); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, file), []byte(strconv.Itoa(limit)), 0o600); err != nil {
		t.Fatal(err)
	}
	s := ownStack(t, lab.StackOptions{Buildkitd: lab.BuildkitdOptions{CgroupParent: "/" + parent}})
	// tail keeps the line that it is given, which has no end.
	_, failure := s.fail(t, dockerfile("FROM "+s.base+"\nRUN head -c 200000000 /dev/zero | tail >/dev/null\n"))
	if failure.ExitCode == nil || failure.GetExitCode() != 137 {
		t.Errorf("exit code %v: %v", failure.ExitCode, failure)
	}
	s.succeed(t, dockerfile("FROM "+s.base+"\nRUN head -c 20000000 /dev/zero | tail >/dev/null\n"))
}
