package e2e_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	"github.com/kilnbuild/kiln/proto/client"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
)

// client makes a Go client of the stack's builder, or of a proxy before it.
func (s *stack) client(t *testing.T, addr string, opts ...client.Option) *client.Client {
	t.Helper()
	c := labtest.Must(client.Dial(addr, opts...))(t)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// A watcher that drops and comes back 50 times while a build writes 100,000 lines
// gets every line once and in order.
func TestWatcherThatDropsMissesNothing(t *testing.T) {
	const lines, drops = 100_000, 50
	s := sharedStack(t)
	proxy := labtest.Must(s.lab.StartProxy(s.Builder.Addr))(t)
	c := s.client(t, proxy.Addr)
	// In batches, for the daemon clips what a step writes faster than 200 KiB a second.
	spec := dockerfile(fmt.Sprintf(`FROM %s
RUN echo %s >/dev/null; i=0; while [ $i -lt 100 ]; do seq $((i * 1000 + 1)) $((i * 1000 + 1000)); sleep 0.05; i=$((i + 1)); done
`, s.base, unique()))
	ctx := labtest.Context(t, 2*time.Minute)
	rec := labtest.Must(c.Start(ctx, spec))(t)
	var (
		log  bytes.Buffer
		seen int
		cuts int
		next = uint64(1)
	)
	outcome, err := c.Watch(ctx, rec.GetId(), 0, func(event *builderv1.BuildEvent) error {
		if event.GetSequence() != next {
			return fmt.Errorf("event %d came where %d was to come", event.GetSequence(), next)
		}
		next++
		data := event.GetLog().GetData()
		log.Write(data)
		if seen += bytes.Count(data, []byte("\n")); cuts < drops && seen >= (cuts+1)*lines/(drops+1) {
			cuts++
			proxy.Cut()
		}
		return nil
	})
	if err != nil || outcome.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
		t.Fatalf("%v, %v", outcome, err)
	}
	if cuts != drops {
		t.Errorf("the connection broke %d times", cuts)
	}
	var want strings.Builder
	for i := 1; i <= lines; i++ {
		fmt.Fprintln(&want, i)
	}
	if log.String() != want.String() {
		t.Errorf("%d lines in %d bytes, want %d in %d", seen, log.Len(), lines, want.Len())
	}
}

// A directory is sent, built, pushed and kept; the artifact is fetched over a
// connection that breaks.
func TestClientBuildsADirectory(t *testing.T) {
	s := sharedStack(t)
	proxy := labtest.Must(s.lab.StartProxy(s.Builder.Addr))(t)
	c := s.client(t, proxy.Addr)
	ctx := labtest.Context(t, 2*time.Minute)
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{
		".dockerignore": "*\n!src\n", "Dockerfile": "FROM " + s.base + "\nCOPY . /app\nRUN dd if=/dev/urandom of=/noise bs=1M count=8 2>/dev/null\n",
		"src/a.txt": "from the client", "secret": "no",
	})
	up := labtest.Must(c.UploadDir(ctx, "client", dir))(t)
	spec := &builderv1.BuildSpec{
		Project: "client",
		Context: &builderv1.Context{Kind: &builderv1.Context_Uploaded{Uploaded: &builderv1.UploadedContext{Digest: up.GetDigest()}}},
		Outputs: append(push(s.ref("client")), &builderv1.Output{Kind: &builderv1.Output_Archive{Archive: &builderv1.ArchiveOutput{
			Format: builderv1.ArchiveFormat_ARCHIVE_FORMAT_OCI,
		}}}),
	}
	var id string
	outcome, err := c.Build(ctx, spec, func(event *builderv1.BuildEvent) error {
		if event.GetStarted() != nil {
			id = event.GetStarted().GetBuildId()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if served := labtest.Must(image.Digest(ctx, s.ref("client")))(t); outcome.GetOutputs()[0].GetDigest() != served {
		t.Errorf("outputs %v, the registry serves %s", outcome.GetOutputs(), served)
	}
	if got := file(t, s.ref("client"), "", "/app/src/a.txt"); got != "from the client" {
		t.Errorf("/app/src/a.txt is %q", got)
	}
	if again := labtest.Must(c.UploadDir(ctx, "client", dir))(t); again.GetDigest() != up.GetDigest() {
		t.Errorf("the same directory is %s, and then %s", up.GetDigest(), again.GetDigest())
	}
	kept := outcome.GetOutputs()[1]
	var got bytes.Buffer
	n, err := c.Download(ctx, id, kept.GetArtifact(), &cutting{w: &got, cut: proxy.Cut})
	if err != nil || n != kept.GetSizeBytes() {
		t.Fatalf("%d of %d bytes, %v", n, kept.GetSizeBytes(), err)
	}
	names := map[string]bool{}
	for r := tar.NewReader(&got); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names[h.Name] = true
	}
	if !names["index.json"] || !names["oci-layout"] {
		t.Errorf("the archive holds %v", names)
	}
}

// cutting breaks the connection after each 2 MiB.
type cutting struct {
	w   io.Writer
	n   int
	cut func()
}

func (c *cutting) Write(data []byte) (int, error) {
	before := c.n >> 21
	if c.n += len(data); c.n>>21 != before {
		c.cut()
	}
	return c.w.Write(data)
}

// A build outlives its builder: killed while it builds and started again, the
// builder goes on by the retry policy, and the client's watch with it.
func TestClientOutlivesTheBuilder(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	c := s.client(t, s.Builder.Addr)
	spec := dockerfile("FROM "+s.base+"\nRUN echo begun; sleep 3; echo "+unique()+" >/x\n", s.ref("outlives"))
	spec.Retry = &builderv1.RetryPolicy{MaxAttempts: 2}
	killed, next := false, uint64(1)
	outcome, err := c.Build(labtest.Context(t, 2*time.Minute), spec, func(event *builderv1.BuildEvent) error {
		if event.GetSequence() != next {
			return fmt.Errorf("event %d came where %d was to come", event.GetSequence(), next)
		}
		next++
		if !killed && bytes.Contains(event.GetLog().GetData(), []byte("begun")) {
			killed = true
			s.restart(t)
		}
		return nil
	})
	if err != nil || !killed || outcome.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
		t.Errorf("%v, %v (killed: %v)", outcome, err, killed)
	}
}

// Builds that fail, and calls that are refused, are told apart by type.
func TestClientErrors(t *testing.T) {
	s := sharedStack(t)
	c := s.client(t, s.Builder.Addr)
	ctx := labtest.Context(t, time.Minute)
	_, err := c.Build(ctx, dockerfile("FROM "+s.base+"\nRUN echo last words; exit 3\n"), nil)
	failed, ok := errors.AsType[*client.BuildError](err)
	if !ok || failed.Reason != "STEP_FAILED" || failed.ExitCode == nil || *failed.ExitCode != 3 || failed.Location.GetStartLine() != 2 ||
		failed.Class != errorsv1.FailureClass_FAILURE_CLASS_USER || len(failed.LogTail) != 1 {
		t.Errorf("%v: %+v", err, failed)
	}
	_, err = c.Start(ctx, &builderv1.BuildSpec{})
	if client.Reason(err) != "INVALID_FIELD" || client.Remedy(err) == "" {
		t.Errorf("%v: %q, %q", err, client.Reason(err), client.Remedy(err))
	}
	if _, err := c.Watch(ctx, "no-such-build", 0, nil); client.Reason(err) != "NOT_FOUND" {
		t.Errorf("%v", err)
	}
	if _, err := c.Download(ctx, failed.ID, "image.tar", io.Discard); client.Reason(err) != "NOT_FOUND" {
		t.Errorf("%v", err)
	}
}

// A queue that is full is waited for as the builder asks, and the build is begun
// once.
func TestClientWaitsForAPlace(t *testing.T) {
	s := ownStack(t, lab.StackOptions{Builder: &configv1.BuilderConfig{
		MaxRunningBuilds: 1, Admission: &configv1.AdmissionConfig{MaxQueued: 1},
	}})
	c := s.client(t, s.Builder.Addr)
	ctx := labtest.Context(t, 2*time.Minute)
	slow := func() *builderv1.BuildSpec {
		return dockerfile("FROM " + s.base + "\nRUN echo " + unique() + "; sleep 2\n")
	}
	ids := map[string]bool{}
	for range 4 {
		ids[labtest.Must(c.Start(ctx, slow()))(t).GetId()] = true
	}
	for id := range ids {
		if _, err := c.Watch(ctx, id, 0, nil); err != nil {
			t.Error(err)
		}
	}
	if n := len(labtest.Must(s.api.ListBuilds(context.WithoutCancel(ctx), &builderv1.ListBuildsRequest{}))(t).GetBuilds()); n != 4 || len(ids) != 4 {
		t.Errorf("%d builds of %d ids, want 4", n, len(ids))
	}
}
