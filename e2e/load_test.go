package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/builder"
)

// atOnce is how many builds run at once.
const atOnce = 16

// Sixteen builds at once on one daemon all end rightly. The builder runs in this
// process, so that the race detector sees it, and leaves no goroutine and no
// descriptor behind.
func TestSixteenBuildsAtOnce(t *testing.T) {
	s := sharedStack(t)
	before := goleak.IgnoreCurrent()
	descriptors := openDescriptors(t, os.Getpid())

	cfg := lab.BuilderConfig(nil, s.Buildkitd.Addr, s.Registry.Addr)
	cfg.Server = &configv1.ServerConfig{Listen: "127.0.0.1:0", HttpListen: "off"}
	service := labtest.Must(builder.New(t.Context(), cfg, telemetry.Discard()))(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- service.Run(ctx) }()
	l := labtest.New(t)
	api := labtest.Must(dial(l, service.Addr()))(t)
	if err := lab.WaitServing(ctx, nil, service.Addr()); err != nil {
		t.Fatal(err)
	}

	buildAtOnce(t, s, api, "load-a")

	stop()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
	labtest.Eventually(t, 10*time.Second, fmt.Sprintf("no more than the %d descriptors of before", descriptors), func() bool {
		return openDescriptors(t, os.Getpid()) <= descriptors
	})
}

// The same on the builder's binary, twice: after the second time it has no more
// descriptors open than after the first.
func TestSixteenBuildsAtOnceLeaveNoDescriptor(t *testing.T) {
	s := sharedStack(t)
	buildAtOnce(t, s, s.api, "load-b")
	time.Sleep(2 * time.Second) // Connections that are being closed.
	first := openDescriptors(t, s.Builder.PID())
	buildAtOnce(t, s, s.api, "load-c")
	labtest.Eventually(t, 20*time.Second, fmt.Sprintf("no more than the %d descriptors of before", first), func() bool {
		return openDescriptors(t, s.Builder.PID()) <= first
	})
}

// buildAtOnce builds and pushes different images at once, and checks each.
func buildAtOnce(t *testing.T, s *stack, api builderv1.BuilderServiceClient, name string) {
	t.Helper()
	var wg sync.WaitGroup
	results := make([]result, atOnce)
	contents := make([]string, atOnce)
	for i := range atOnce {
		contents[i] = fmt.Sprint(name, i, unique())
		spec := inline(map[string]string{
			"Dockerfile": "FROM " + s.base + "\nCOPY n /n\nRUN echo started; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sha256sum /n >/sum\n",
			"n":          contents[i],
		}, s.ref(name+strconv.Itoa(i)))
		spec.Project = fmt.Sprint("load-", i%4)
		wg.Go(func() { results[i] = readBuild(labtest.Context(t, 3*time.Minute), api, spec) })
	}
	wg.Wait()
	digests := map[string]bool{}
	for i, r := range results {
		if r.err != nil || r.outcome.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
			t.Errorf("build %d: %v, %v", i, r.err, r.outcome)
			continue
		}
		digest := r.outcome.GetOutputs()[0].GetDigest()
		if served := labtest.Must(image.Digest(t.Context(), s.ref(name+strconv.Itoa(i))))(t); served != digest {
			t.Errorf("build %d: the outcome says %s, the registry serves %s", i, digest, served)
		}
		if got := file(t, s.ref(name+strconv.Itoa(i)), "", "/n"); got != contents[i] {
			t.Errorf("build %d: /n is %q, want %q", i, got, contents[i])
		}
		if r.log() != "started\n" {
			t.Errorf("build %d wrote %q", i, r.log())
		}
		digests[digest] = true
	}
	if len(digests) != atOnce {
		t.Errorf("%d different images, want %d", len(digests), atOnce)
	}
}

// openDescriptors counts the open files of a process.
func openDescriptors(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
