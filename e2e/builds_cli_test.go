package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	"github.com/kilnbuild/kiln/pkg/testkit"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// builds runs `kiln builds`, and returns what it printed and its exit code.
func (s *stack) builds(t *testing.T, args ...string) (lab.Output, int) {
	t.Helper()
	out, err := s.kiln(t, append([]string{"builds"}, args...)...)
	if err == nil {
		return out, 0
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		t.Fatal(err)
	}
	return out, exit.ExitCode()
}

// prints fails the test unless a command ends well and prints all of some texts.
func (s *stack) prints(t *testing.T, args []string, wants ...string) string {
	t.Helper()
	out, code := s.builds(t, args...)
	for _, want := range wants {
		if !strings.Contains(out.Stdout+out.Stderr, want) {
			t.Errorf("kiln builds %v: no %q in\n%s%s", args, want, out.Stdout, out.Stderr)
		}
	}
	if code != 0 {
		t.Errorf("kiln builds %v ended with %d\n%s", args, code, out.Stderr)
	}
	return out.Stdout
}

// complains fails the test unless a command ends with a code and one line of
// error that holds some texts.
func (s *stack) complains(t *testing.T, code int, args []string, wants ...string) {
	t.Helper()
	out, got := s.builds(t, args...)
	lines := strings.Split(strings.TrimSpace(out.Stderr), "\n")
	last := lines[len(lines)-1]
	for _, want := range wants {
		if !strings.Contains(last, want) {
			t.Errorf("kiln builds %v: no %q in %q", args, want, last)
		}
	}
	if got != code {
		t.Errorf("kiln builds %v ended with %d, want %d", args, got, code)
	}
}

// A detached build is listed, watched by a part of its id, and pushed.
func TestKilnBuildDetach(t *testing.T) {
	s := sharedStack(t)
	context := t.TempDir()
	labtest.Write(t, context, map[string]string{".dockerignore": "*.log\n", "a.txt": "detached", "b.log": "no"})
	docker := t.TempDir()
	labtest.Write(t, docker, map[string]string{"Dockerfile": "FROM " + s.base + `
ARG WHO
COPY . /app
RUN --mount=type=secret,id=token test -s /run/secrets/token && test ! -e /app/b.log && echo "hello $WHO" && echo "$WHO" >/who
`})
	token := filepath.Join(t.TempDir(), "token")
	labtest.Write(t, filepath.Dir(token), map[string]string{"token": "0123456789"})
	out := labtest.Must(s.kiln(t, "build", context, docker, s.ref("detached"), "--push", "--detach", "--build-arg", "WHO=me",
		"--secret", "id=token,src="+token, "--label", "org.example.a=b"))(t)
	id := strings.TrimSpace(out.Stdout)
	if !strings.Contains(out.Stderr, "kiln builds watch "+id) {
		t.Errorf("stderr is %q", out.Stderr)
	}
	s.prints(t, []string{"watch", id[:12], "--progress", "plain"}, "RUN --mount=type=secret", "hello me", "succeeded in", s.ref("detached")+"@sha256:")
	if got := file(t, s.ref("detached"), "", "/who"); got != "me\n" {
		t.Errorf("/who is %q", got)
	}
	s.prints(t, []string{"logs", id}, "hello me\n")
	if got := s.prints(t, []string{"logs", id, "--step", "COPY"}); got != "" {
		t.Errorf("COPY wrote %q", got)
	}
	s.prints(t, []string{"show", id}, "detached:1@sha256:", "project    detached", "state      succeeded")
	list := s.prints(t, []string{"ls", "--project", "detached", "--state", "succeeded", "--since", "1h", "--tag", s.Registry.Addr, "--format", "json"})
	var rec struct {
		ID, State string
		Outcome   struct{ Outputs []struct{ Digest string } }
	}
	if err := json.Unmarshal([]byte(list), &rec); err != nil || rec.ID != id || rec.State != "BUILD_STATE_SUCCEEDED" ||
		rec.Outcome.Outputs[0].Digest != labtest.Must(image.Digest(t.Context(), s.ref("detached")))(t) {
		t.Errorf("%+v, %v in %s", rec, err, list)
	}
	s.prints(t, []string{"ls", "--project", "detached"}, "BUILD", id, "succeeded")
	s.prints(t, []string{"ls", "--project", "there-is-none"}, "no builds fit")
	events := s.prints(t, []string{"watch", id, "--format", "json", "--from", "2"})
	if first, _, _ := strings.Cut(events, "\n"); !strings.HasPrefix(first, `{"sequence":"2",`) {
		t.Errorf("the first event is %s", first)
	}
	for _, text := range []string{list, events, out.Stdout, out.Stderr} {
		if strings.Contains(text, "0123456789") {
			t.Error("the secret is shown")
		}
	}
	complete := labtest.Must(s.kiln(t, "__complete", "builds", "watch", id[:4]))(t)
	if !strings.Contains(complete.Stdout, id+"\tsucceeded detached") {
		t.Errorf("completions: %s", complete.Stdout)
	}
}

// Commands that cannot do what is asked say why and what to do, in one line.
func TestKilnBuildsComplains(t *testing.T) {
	s := sharedStack(t)
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM scratch\n"})
	done := s.succeed(t, dockerfile("FROM scratch\nCOPY <<EOF /x\n"+unique()+"\nEOF\n", s.ref("complains"))).id()
	s.complains(t, 1, []string{"show", "there-is-none"}, `no build "there-is-none"`, "kiln builds ls")
	s.complains(t, 1, []string{"show"}, "needs the ID", "kiln builds ls")
	s.complains(t, 1, []string{"ls", "--filter", "colour = RED"}, "filter")
	s.complains(t, 1, []string{"ls", "--state", "purple"}, "--state", "use queued")
	s.complains(t, 1, []string{"ls", "--builder", "127.0.0.1:1"}, "cannot reach the builder at 127.0.0.1:1", "kiln up")
	s.complains(t, 1, []string{"ls", "--builder", "builder.example.org:1"}, "--tls-ca", "--insecure")
	s.complains(t, 1, []string{"watch", done, "--from", "1000000"}, "1000000")
	s.complains(t, 1, []string{"artifacts", "get", done}, "kept no artifacts")
	s.complains(t, 1, []string{"retry", done, "--ssh", "default"}, "name a key")
	s.prints(t, []string{"cancel", done}, "had ended already: succeeded")
	for want, args := range map[string][]string{
		"use --push":  {"--load"},
		"name a key":  {"--ssh", "default"},
		"write it li": {"--secret", "id=x,src=/nonexistent"},
	} {
		out, err := s.kiln(t, append([]string{"build", dir, dir, s.ref("complains"), "--detach"}, args...)...)
		if err == nil || !strings.Contains(out.Stderr, want) {
			t.Errorf("build --detach %v: %v", args, out.Stderr)
		}
	}
}

// Each end of a build has its exit code, and a failure all that is known of it.
func TestKilnBuildsWatchTellsTheEnd(t *testing.T) {
	s := ownStack(t, lab.StackOptions{Builder: &configv1.BuilderConfig{MaxRunningBuilds: 1}})
	failed := s.start(t, dockerfile("FROM "+s.base+"\nRUN echo last words; exit 3\n"), "").GetId()
	s.complains(t, 1, []string{"watch", failed, "--progress", "quiet"}, "failed: Dockerfile:2")
	out, _ := s.builds(t, "watch", failed, "--progress", "plain")
	for _, want := range []string{"STEP_FAILED (user)", "exit code  3", ">>> RUN echo last words", "last words"} {
		if !strings.Contains(out.Stderr, want) {
			t.Errorf("no %q in\n%s", want, out.Stderr)
		}
	}
	s.prints(t, []string{"show", failed}, "why it failed", "STEP_FAILED (user)", "exit code  3", ">>> RUN echo last words")

	long := "FROM " + s.base + "\nRUN echo begun; sleep 60\n"
	runs := s.start(t, dockerfile(long), "").GetId()
	s.running(t, runs, "begun")
	waits := s.start(t, dockerfile(long), "").GetId()
	labtest.Eventually(t, 10*time.Second, "the second build waits", func() bool {
		return s.get(t, waits).GetQueue().GetPosition() == 1
	})
	s.prints(t, []string{"show", waits}, "place 1:")
	s.prints(t, []string{"ls", "--state", "queued,running"}, runs, waits, "place 1:")
	s.left(t, runs)
	s.prints(t, []string{"cancel", waits, runs}, waits+" is cancelled", runs+" is cancelled")
	s.complains(t, 3, []string{"watch", runs, "--progress", "quiet"}, "was cancelled")

	spec := dockerfile(long)
	spec.Timeout = durationpb.New(time.Second)
	s.complains(t, 4, []string{"watch", s.start(t, spec, "").GetId(), "--progress", "quiet"}, "timed out")
}

// left watches a build until it shows something, ends the watch with Ctrl-C, and
// fails the test unless that leaves the build and says so.
func (s *stack) left(t *testing.T, id string) {
	t.Helper()
	p := labtest.Must(s.lab.Run(lab.Command{
		Name: "watch", Path: labtest.Must(lab.Bin("kiln"))(t), Args: []string{"builds", "watch", id, "--progress", "plain"}, Env: []string{"KILN_BUILDER=" + s.Builder.Addr},
	}))(t)
	labtest.Eventually(t, 20*time.Second, "the watch shows the step", func() bool { return strings.Contains(p.Output(), "begun") })
	if err := p.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the watch goes on after Ctrl-C")
	}
	if p.ExitCode() != 130 || !strings.Contains(p.Output(), "the build goes on") {
		t.Errorf("it ended with %d:\n%s", p.ExitCode(), p.Output())
	}
	if state := s.get(t, id).GetState(); state != builderv1.BuildState_BUILD_STATE_RUNNING {
		t.Errorf("the build is %s", state)
	}
}

// Logs are followed to the end, or shown as far as they are.
func TestKilnBuildsLogs(t *testing.T) {
	s := sharedStack(t)
	id := s.start(t, dockerfile("FROM "+s.base+"\nRUN echo "+unique()+" >/dev/null; echo one; sleep 3; echo two\n"), "").GetId()
	s.running(t, id, "one")
	if got := s.prints(t, []string{"logs", id}); got != "one\n" {
		t.Errorf("so far: %q", got)
	}
	if got := s.prints(t, []string{"logs", id, "--follow"}); got != "one\ntwo\n" {
		t.Errorf("followed: %q", got)
	}
}

// What a build has kept is listed and fetched, whole or not at all; a fetch goes
// on where an earlier one broke.
func TestKilnBuildsArtifacts(t *testing.T) {
	s := sharedStack(t)
	spec := dockerfile("FROM " + s.base + "\nRUN dd if=/dev/urandom of=/noise bs=1M count=3 2>/dev/null\n")
	spec.Outputs = []*builderv1.Output{
		{Kind: &builderv1.Output_Archive{Archive: &builderv1.ArchiveOutput{Format: builderv1.ArchiveFormat_ARCHIVE_FORMAT_DOCKER}}},
		{Kind: &builderv1.Output_Local{Local: &builderv1.LocalOutput{Artifact: "tree.tar"}}},
	}
	id := s.succeed(t, spec).id()
	s.prints(t, []string{"artifacts", "ls", id}, "ARTIFACT", "image.tar", "tree.tar", "MB")
	s.complains(t, 1, []string{"artifacts", "get", id}, "image.tar, tree.tar")

	dir := t.TempDir()
	whole := filepath.Join(dir, "whole.tar")
	s.prints(t, []string{"artifacts", "get", id, "image.tar", "-o", whole}, "MB")
	want := labtest.Must(os.ReadFile(whole))(t)
	again := filepath.Join(dir, "again.tar")
	part := filepath.Join(dir, ".again.tar."+id[:12]+".part")
	for _, begun := range [][]byte{want[:1<<20], append(want[:len(want):len(want)], "more"...)} {
		if err := os.WriteFile(part, begun, 0o600); err != nil {
			t.Fatal(err)
		}
		s.prints(t, []string{"artifacts", "get", id, "image.tar", "-o", again})
		if got := labtest.Must(os.ReadFile(again))(t); !bytes.Equal(got, want) {
			t.Errorf("%d bytes, want the %d of the first fetch", len(got), len(want))
		}
		if _, err := os.Stat(part); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", part, err)
		}
	}
	if got := s.prints(t, []string{"artifacts", "get", id, "image.tar", "-o", "-"}); got != string(want) {
		t.Errorf("to standard output: %d bytes, want %d", len(got), len(want))
	}
	if files := labtest.Must(os.ReadDir(dir))(t); len(files) != 2 {
		t.Errorf("left in the directory: %v", files)
	}
}

// A build that failed is built again, with its secrets sent again.
func TestKilnBuildsRetry(t *testing.T) {
	s := sharedStack(t)
	missing := s.Registry.Addr + "/kiln-retry/base:1"
	spec := dockerfile("FROM "+missing+"\nRUN --mount=type=secret,id=tok wc -c </run/secrets/tok\n", s.ref("kiln-retried"))
	spec.Secrets = []*builderv1.Secret{{Id: "tok", Value: []byte("first")}}
	id := s.start(t, spec, "").GetId()
	s.ended(t, id, builderv1.BuildState_BUILD_STATE_FAILED)
	s.complains(t, 1, []string{"retry", id}, "tok", "send them again")
	s.succeed(t, dockerfile("FROM "+s.base+"\n", missing)) // now it is there
	secret := filepath.Join(t.TempDir(), "tok")
	labtest.Write(t, filepath.Dir(secret), map[string]string{"tok": "the second"})
	s.prints(t, []string{"retry", id, "--secret", "id=tok,src=" + secret, "--progress", "plain"}, "10\n", "succeeded in")
	again := strings.TrimSpace(s.prints(t, []string{"retry", id, "--secret", "id=tok,src=" + secret, "--detach"}))
	s.prints(t, []string{"watch", again, "--progress", "quiet"}, "succeeded in")
	s.prints(t, []string{"show", again}, "retry of   "+id)
}

// All commands reach a builder behind TLS that wants a certificate.
func TestKilnOverTLS(t *testing.T) {
	s := sharedStack(t)
	ca, dir := testkit.NewCA(t, "test"), t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	ca.Issue(t, path("server.pem"), path("server-key.pem"), "builder")
	ca.Issue(t, path("me.pem"), path("me-key.pem"), "me")
	builder := s.tlsBuilder(t, &configv1.ServerConfig{
		Tls:    &configv1.ServerTLS{CertFile: path("server.pem"), KeyFile: path("server-key.pem"), ClientCaFile: ca.File},
		Access: []*configv1.AccessRule{{Identities: []string{"me"}, Methods: []string{"*"}}},
	})
	flags := []string{"--builder", builder, "--tls-ca", ca.File, "--tls-cert", path("me.pem"), "--tls-key", path("me-key.pem")}
	labtest.Eventually(t, 30*time.Second, "the builder serves over TLS", func() bool {
		_, code := s.builds(t, append([]string{"ls"}, flags...)...)
		return code == 0
	})
	src := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\nRUN echo " + unique() + " >/x\n"})
	o := readOutcome(t, labtest.Must(s.kiln(t, append([]string{"build", src, src, s.ref("tls"), "--push", "--progress", "quiet", "--format", "json"}, flags...)...))(t))
	if o.State != "SUCCEEDED" || o.TotalSteps == 0 {
		t.Errorf("kiln build: %+v", o)
	}
	id := strings.TrimSpace(labtest.Must(s.kiln(t, append([]string{"build", src, src, s.ref("tls"), "--push", "--detach"}, flags...)...))(t).Stdout)
	s.prints(t, append([]string{"watch", id, "--progress", "quiet"}, flags...), "succeeded in")
	s.prints(t, append([]string{"ls"}, flags...), id)
	s.complains(t, 1, append([]string{"ls"}, flags[:4]...), "cannot reach the builder")
	s.complains(t, 1, []string{"ls", "--builder", builder}, "cannot reach the builder")
}

// tlsBuilder starts a second builder of the stack's daemon and returns its
// address. The lab's own way to start one asks for its health in plain text.
func (s *stack) tlsBuilder(t *testing.T, server *configv1.ServerConfig) string {
	t.Helper()
	l := labtest.New(t)
	server.Listen, server.HttpListen = labtest.Must(lab.FreeAddr())(t), "off"
	config := lab.BuilderConfig(&configv1.BuilderConfig{Server: server}, s.Buildkitd.Addr, s.Registry.Addr)
	config.StateDir = filepath.Join(l.Dir, "tls-state")
	data := labtest.Must(protojson.Marshal(config))(t)
	labtest.Write(t, l.Dir, map[string]string{"tls.yaml": string(data)})
	labtest.Must(l.Run(lab.Command{
		Name: "tls-builder", Path: labtest.Must(lab.Bin("kiln-builder"))(t), Args: []string{"--config", filepath.Join(l.Dir, "tls.yaml")},
	}))(t)
	return server.GetListen()
}
