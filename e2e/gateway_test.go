package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// canary is a secret that must show nowhere.
const canary = "canary-7f3a9c"

// gatewayFiles is a build with what goes through a client's session: a context, a
// secret, and log lines.
func gatewayFiles(s *stack) map[string]string {
	return map[string]string{
		"Dockerfile": "FROM " + s.base + "\nCOPY data /data\n" +
			"RUN --mount=type=secret,id=token wc -c </run/secrets/token >/length && echo made-a-step\n",
		"data": unique(), "token": canary,
	}
}

// Unmodified buildctl builds and pushes through the builder's port, shows its
// progress, and its build is listed like any other.
func TestBuildctlThroughTheGateway(t *testing.T) {
	s := sharedStack(t)
	dir := s.dir(t, gatewayFiles(s))
	metadata := filepath.Join(t.TempDir(), "metadata.json")
	out := labtest.Must(lab.Exec(labtest.Context(t, time.Minute), buildctl(t, "tcp://"+s.Builder.Addr, dir,
		"--secret", "id=token,src="+filepath.Join(dir, "token"), "--metadata-file", metadata,
		"--output", "type=image,push=true,name="+s.ref("by-buildctl"))))(t)
	for _, want := range []string{"RUN --mount=type=secret", "made-a-step", "pushing manifest", "DONE"} {
		if !strings.Contains(out.Stderr, want) {
			t.Errorf("no %q in its progress:\n%s", want, out.Stderr)
		}
	}
	digest := metadataDigest(t, metadata)
	if served := labtest.Must(image.Digest(t.Context(), s.ref("by-buildctl")))(t); served != digest {
		t.Errorf("buildctl says %s, the registry serves %s", digest, served)
	}
	if got := strings.TrimSpace(file(t, s.ref("by-buildctl"), "", "/length")); got != strconv.Itoa(len(canary)) {
		t.Errorf("the secret had %s bytes in the build", got)
	}
	listed(t, s, s.ref("by-buildctl"), digest)
	if strings.Contains(s.Builder.Output()+out.Stderr, canary) {
		t.Error("the secret is in a log")
	}
}

// The same with docker buildx and its remote driver.
func TestBuildxThroughTheGateway(t *testing.T) {
	s := sharedStack(t)
	config := t.TempDir()
	buildx := func(args ...string) lab.Output {
		t.Helper()
		return labtest.Must(lab.Exec(labtest.Context(t, time.Minute), lab.Command{
			Path: labtest.Must(lab.Bin("buildx"))(t), Args: args,
			Env: []string{"BUILDX_CONFIG=" + config, "DOCKER_CONFIG=" + config},
		}))(t)
	}
	buildx("create", "--name", "kiln", "--driver", "remote", "tcp://"+s.Builder.Addr)
	if out := buildx("inspect", "kiln", "--bootstrap"); !strings.Contains(out.Stdout, "linux/amd64") {
		t.Errorf("inspect:\n%s", out.Stdout)
	}
	dir := s.dir(t, gatewayFiles(s))
	metadata := filepath.Join(t.TempDir(), "metadata.json")
	out := buildx("build", "--builder", "kiln", "--progress", "plain", "--push", "-t", s.ref("by-buildx"),
		"--secret", "id=token,src="+filepath.Join(dir, "token"), "--metadata-file", metadata, dir)
	for _, want := range []string{"RUN --mount=type=secret", "made-a-step", "pushing manifest"} {
		if !strings.Contains(out.Stderr, want) {
			t.Errorf("no %q in its progress:\n%s", want, out.Stderr)
		}
	}
	digest := metadataDigest(t, metadata)
	if served := labtest.Must(image.Digest(t.Context(), s.ref("by-buildx")))(t); served != digest {
		t.Errorf("buildx says %s, the registry serves %s", digest, served)
	}
	if got := strings.TrimSpace(file(t, s.ref("by-buildx"), "linux/amd64", "/length")); got != strconv.Itoa(len(canary)) {
		t.Errorf("the secret had %s bytes in the build", got)
	}
	listed(t, s, s.ref("by-buildx"), digest)

	// Files come back through the session too.
	dest := t.TempDir()
	buildx("build", "--builder", "kiln", "--output", "type=local,dest="+dest,
		"--secret", "id=token,src="+filepath.Join(dir, "token"), dir)
	if data := labtest.Must(os.ReadFile(filepath.Join(dest, "length")))(t); strings.TrimSpace(string(data)) != strconv.Itoa(len(canary)) {
		t.Errorf("length: %q", data)
	}
}

// A failing build through the gateway shows the place in the Dockerfile, which
// comes from the details of the daemon's status, and is listed as failed.
func TestFailingBuildThroughTheGateway(t *testing.T) {
	s := sharedStack(t)
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\nRUN echo so it goes && exit 7\n"})
	out, err := lab.Exec(labtest.Context(t, time.Minute), buildctl(t, "tcp://"+s.Builder.Addr, dir))
	if err == nil {
		t.Fatal("it built")
	}
	for _, want := range []string{">>> RUN echo so it goes", "exit code: 7", "Dockerfile:2"} {
		if !strings.Contains(out.Stderr, want) {
			t.Errorf("no %q in\n%s", want, out.Stderr)
		}
	}
	rec := labtest.Must(s.api.ListBuilds(t.Context(), &builderv1.ListBuildsRequest{PageSize: 1}))(t).GetBuilds()[0]
	if rec.GetState() != builderv1.BuildState_BUILD_STATE_FAILED || rec.GetOrigin() != builderv1.BuildOrigin_BUILD_ORIGIN_GATEWAY {
		t.Errorf("record: %v", rec)
	}
	if !strings.Contains(rec.GetOutcome().GetError().GetMessage(), "exit code: 7") {
		t.Errorf("outcome: %v", rec.GetOutcome())
	}
}

// Several clients at once, each with a session, a solve, a status and a frontend's
// calls of its own, which come in any order: none gets another's.
func TestManyClientsThroughTheGatewayAtOnce(t *testing.T) {
	s := sharedStack(t)
	const clients = 8
	var wg sync.WaitGroup
	for i := range clients {
		content := fmt.Sprint(i, unique())
		dir := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\nCOPY data /data\nRUN cat /data && echo\n", "data": content})
		wg.Go(func() {
			ref := s.ref(fmt.Sprint("many-", i))
			out, err := lab.Exec(labtest.Context(t, 2*time.Minute), buildctl(t, "tcp://"+s.Builder.Addr, dir, "--output", "type=image,push=true,name="+ref))
			if err != nil {
				t.Errorf("client %d: %v", i, err)
				return
			}
			if !strings.Contains(out.Stderr, content) {
				t.Errorf("client %d did not see its own log:\n%s", i, out.Stderr)
			}
			img, err := image.Pull(labtest.Context(t, time.Minute), ref, "")
			if err != nil {
				t.Errorf("client %d: %v", i, err)
				return
			}
			if got, err := image.ReadFile(img, "/data"); err != nil || string(got) != content {
				t.Errorf("client %d: /data is %q (%v), want %q", i, got, err, content)
			}
		})
	}
	wg.Wait()
}

// The rest of buildctl works through the gateway as well.
func TestBuildctlCommandsThroughTheGateway(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	s.succeed(t, dockerfile("FROM "+s.base+"\nRUN echo "+unique()+" >/x\n"))
	run := func(args ...string) string {
		t.Helper()
		return labtest.Must(lab.Exec(labtest.Context(t, time.Minute), lab.Command{
			Path: labtest.Must(lab.Bin("buildctl"))(t), Args: append([]string{"--addr", "tcp://" + s.Builder.Addr}, args...),
		}))(t).Stdout
	}
	for command, want := range map[string]string{
		"debug workers": "linux/amd64", "debug info": "BuildKit:", "debug histories": "default", "du": "Reclaimable:", "prune --all": "Total:",
	} {
		if out := run(strings.Fields(command)...); command != "debug histories" && !strings.Contains(out, want) {
			t.Errorf("%s: no %q in\n%s", command, want, out)
		}
	}
	if out := run("du", "--format", "{{json .}}"); strings.TrimSpace(out) != "null" {
		t.Errorf("after the prune: %s", out)
	}
}

// A context larger than any message, and a result as large, pass the gateway whole.
func TestLargeContextThroughTheGateway(t *testing.T) {
	s := sharedStack(t)
	line := strings.Repeat("0123456789abcde\n", 64<<10) // 1 MiB
	files := map[string]string{"Dockerfile": "FROM scratch\nCOPY data /data\n"}
	for i := range 24 {
		files[fmt.Sprintf("data/%d", i)] = line + unique()
	}
	dir := s.dir(t, files)
	dest := t.TempDir()
	labtest.Must(lab.Exec(labtest.Context(t, 2*time.Minute),
		buildctl(t, "tcp://"+s.Builder.Addr, dir, "--output", "type=local,dest="+dest)))(t)
	for name, want := range files {
		if name == "Dockerfile" {
			continue
		}
		if got := string(labtest.Must(os.ReadFile(filepath.Join(dest, name)))(t)); got != want {
			t.Errorf("%s came back with %d bytes, want %d", name, len(got), len(want))
		}
	}
}

// listed checks the newest record that pushes to ref: a build through the gateway
// that succeeded, with its digest and steps.
func listed(t *testing.T, s *stack, ref, digest string) {
	t.Helper()
	var rec *builderv1.BuildRecord
	labtest.Eventually(t, 10*time.Second, "the build in ListBuilds, with its steps", func() bool {
		for _, b := range labtest.Must(s.api.ListBuilds(t.Context(), &builderv1.ListBuildsRequest{}))(t).GetBuilds() {
			if len(b.GetTags()) == 1 && b.GetTags()[0] == ref && b.GetSteps().GetTotal() > 0 && b.GetEndTime() != nil {
				rec = b
				return true
			}
		}
		return false
	})
	if rec.GetOrigin() != builderv1.BuildOrigin_BUILD_ORIGIN_GATEWAY || rec.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
		t.Errorf("record: %v", rec)
	}
	if outs := rec.GetOutcome().GetOutputs(); len(outs) != 1 || outs[0].GetDigest() != digest {
		t.Errorf("outputs %v, want %s", outs, digest)
	}
	if steps := rec.GetSteps(); steps.GetCompleted() == 0 || steps.GetFailed() != 0 {
		t.Errorf("steps: %v", steps)
	}
}

// metadataDigest reads the digest that a BuildKit client wrote.
func metadataDigest(t *testing.T, path string) string {
	t.Helper()
	var metadata map[string]any
	if err := json.Unmarshal(labtest.Must(os.ReadFile(path))(t), &metadata); err != nil {
		t.Fatal(err)
	}
	digest, _ := metadata["containerimage.digest"].(string)
	return digest
}
