package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	"github.com/kilnbuild/kiln/pkg/cachescope"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// The digest that the outcome names is the one that the registry serves, under
// every tag, and the content is what the Dockerfile says.
func TestDigestAndContentAreThoseOfTheRegistry(t *testing.T) {
	s := sharedStack(t)
	spec := inline(map[string]string{
		"Dockerfile":   "FROM " + s.base + "\nCOPY words/in.txt /in.txt\nRUN tr a-z A-Z </in.txt >/out.txt\n",
		"words/in.txt": "kiln\n",
	}, s.ref("content-a"), s.ref("content-b"))
	spec.Outputs = append(spec.Outputs, push(s.ref("content-c"))...)
	r := s.succeed(t, spec)

	if n := len(r.outcome.GetOutputs()); n != 2 {
		t.Fatalf("%d outputs in the outcome, want 2", n)
	}
	for i, names := range [][]string{{"content-a", "content-b"}, {"content-c"}} {
		out := r.outcome.GetOutputs()[i]
		if len(out.GetTags()) != len(names) {
			t.Errorf("output %d has tags %v, want %v", i, out.GetTags(), names)
		}
		for _, name := range names {
			desc := labtest.Must(image.Descriptor(t.Context(), s.ref(name)))(t)
			if desc.Digest.String() != out.GetDigest() {
				t.Errorf("%s: the outcome says %s, the registry serves %s", name, out.GetDigest(), desc.Digest)
			}
			if string(desc.MediaType) != out.GetMediaType() {
				t.Errorf("%s: the outcome says %q, the registry serves %q", name, out.GetMediaType(), desc.MediaType)
			}
			if got := file(t, s.ref(name), "", "/out.txt"); got != "KILN\n" {
				t.Errorf("%s: /out.txt is %q", name, got)
			}
		}
	}
}

// Events have numbers without gaps, begin with started and end with the outcome,
// and hold steps with times, what they wrote, and the counts of the outcome.
func TestS9_EventsTellTheWholeBuild(t *testing.T) {
	s := sharedStack(t)
	r := s.succeed(t, dockerfile("FROM "+s.base+"\nRUN echo to-stdout; echo to-stderr >&2; echo "+unique()+" >/x\n"))

	for i, e := range r.events {
		if e.GetSequence() != uint64(i+1) {
			t.Fatalf("event %d has the number %d", i+1, e.GetSequence())
		}
		if !e.GetTime().IsValid() {
			t.Fatalf("event %d has no time", i+1)
		}
		if (e.GetStarted() != nil) != (i == 0) || (e.GetOutcome() != nil) != (i == len(r.events)-1) {
			t.Errorf("event %d of %d is %v", i+1, len(r.events), e)
		}
	}
	states := map[builderv1.StepState]bool{}
	for _, e := range r.events {
		if step := e.GetStep(); strings.Contains(step.GetName(), "RUN echo to-stdout") {
			states[step.GetState()] = true
			if step.GetState() == builderv1.StepState_STEP_STATE_DONE && !step.GetEndTime().AsTime().After(step.GetStartTime().AsTime()) {
				t.Errorf("the step ran from %v to %v", step.GetStartTime(), step.GetEndTime())
			}
		}
	}
	if !states[builderv1.StepState_STEP_STATE_STARTED] || !states[builderv1.StepState_STEP_STATE_DONE] {
		t.Errorf("the RUN step was seen in %v only", states)
	}
	streams := map[builderv1.LogStream]string{}
	for _, e := range r.events {
		streams[e.GetLog().GetStream()] += string(e.GetLog().GetData())
	}
	if streams[builderv1.LogStream_LOG_STREAM_STDOUT] != "to-stdout\n" || streams[builderv1.LogStream_LOG_STREAM_STDERR] != "to-stderr\n" {
		t.Errorf("logs: %q", streams)
	}
	steps, times := r.outcome.GetSteps(), r.outcome.GetTimes()
	if steps.GetTotal() == 0 || steps.GetCompleted() == 0 || steps.GetFailed() != 0 {
		t.Errorf("steps: %v", steps)
	}
	if times.GetTotal().AsDuration() <= 0 || times.GetSolve().AsDuration() <= 0 || times.GetTotal().AsDuration() < times.GetSolve().AsDuration() {
		t.Errorf("times: %v", times)
	}
}

// The second build of the same finds every step in the daemon's cache, and gives
// the same image.
func TestS2_UnchangedBuildIsCached(t *testing.T) {
	s := sharedStack(t)
	files := map[string]string{
		"Dockerfile": "FROM " + s.base + "\nCOPY a /a\nRUN sha256sum /a >/sum\nRUN wc /sum >/count\n",
		"a":          unique(),
	}
	first := s.succeed(t, inline(files, s.ref("s2")))
	second := s.succeed(t, inline(files, s.ref("s2")))
	if got := second.outcome.GetSteps(); len(second.ran()) > 0 || got.GetCached() < 3 {
		t.Errorf("second build: %v and %q ran, want COPY and both RUN cached", got, second.ran())
	}
	if len(first.ran()) != 3 {
		t.Errorf("first build: %q ran", first.ran())
	}
	if a, b := first.outcome.GetOutputs()[0].GetDigest(), second.outcome.GetOutputs()[0].GetDigest(); a != b {
		t.Errorf("%s, and the second time %s", a, b)
	}
	files["a"] = unique()
	third := s.succeed(t, inline(files))
	if len(third.ran()) != 3 {
		t.Errorf("a changed file, and only %q ran", third.ran())
	}
	again := inline(files)
	again.NoCache = true
	if ran := s.succeed(t, again).ran(); len(ran) != 3 {
		t.Errorf("no_cache, and only %q ran", ran)
	}
}

// What was sent for an earlier build of the project never stands in for what is
// sent now, though it has the same names, sizes, modes and times.
func TestContextsOfAProjectAreNeverMixedUp(t *testing.T) {
	s := sharedStack(t)
	text := "FROM scratch\nCOPY f /f\n"
	old := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	for round := range 3 {
		for _, kind := range []string{"inline", "directory"} {
			for _, content := range []string{"aaaa", "bbbb", "cccc"} {
				content += strconv.Itoa(round)
				ref := s.ref("mixed-" + kind)
				spec := inline(map[string]string{"Dockerfile": text, "f": content}, ref)
				if kind == "directory" {
					dir := s.dir(t, map[string]string{"Dockerfile": text, "f": content})
					for _, name := range []string{"Dockerfile", "f", "."} {
						if err := os.Chtimes(filepath.Join(dir, name), old, old); err != nil {
							t.Fatal(err)
						}
					}
					spec = directory(dir, ref)
				}
				spec.Project = "mixed"
				s.succeed(t, spec)
				if got := file(t, ref, "", "/f"); got != content {
					t.Errorf("%s, round %d: /f is %q, want %q", kind, round, got, content)
				}
			}
		}
	}
}

// A daemon that has nothing takes every step from the cache that another daemon
// left in the registry, at <registry>/cache/<project>; that cache is an image
// manifest, which every registry accepts.
func TestS3_RegistryCacheOnAnEmptyDaemon(t *testing.T) {
	s := sharedStack(t)
	spec := inline(map[string]string{
		"Dockerfile": "FROM " + s.base + " AS one\nCOPY a /a\nRUN sha256sum /a >/sum\nFROM " + s.base + "\nCOPY --from=one /sum /sum\nRUN wc /sum >/count\n",
		"a":          unique(),
	}, s.ref("s3"))
	spec.Project, spec.Cache = "s3-project", registryCache()
	first := s.succeed(t, spec)

	desc := labtest.Must(image.Descriptor(t.Context(), s.Registry.Addr+"/cache/s3-project:"+cachescope.Build{Image: "s3"}.Name()))(t)
	if desc.MediaType != types.OCIManifestSchema1 {
		t.Errorf("the cache is %s, want an image manifest", desc.MediaType)
	}
	l := labtest.New(t)
	ctx := labtest.Context(t, time.Minute)
	empty := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{Registries: []string{s.Registry.Addr}}))(t)
	builder := labtest.Must(l.StartBuilder(ctx, lab.BuilderConfig(nil, empty.Addr, s.Registry.Addr), lab.ServiceOptions{}))(t)
	second := readBuild(ctx, labtest.Must(dial(l, builder.Addr))(t), spec)
	if second.err != nil || second.outcome.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
		t.Fatalf("%v, %v", second.err, second.outcome)
	}
	if got := second.outcome.GetSteps(); len(second.ran()) > 0 || got.GetCached() < 4 {
		t.Errorf("on the empty daemon: %v and %q ran, want all cached", got, second.ran())
	}
	if a, b := first.outcome.GetOutputs()[0].GetDigest(), second.outcome.GetOutputs()[0].GetDigest(); a != b {
		t.Errorf("%s, and from the cache %s", a, b)
	}
	if log := second.log(); log != "" {
		t.Errorf("steps ran on the empty daemon: %q", log)
	}
}

// A scope has a tag of its own, and reads from its fallback scopes.
func TestS3_CacheScopes(t *testing.T) {
	s := sharedStack(t)
	spec := dockerfile("FROM " + s.base + "\nRUN echo " + unique() + " >/x\n")
	spec.Project, spec.Cache = "scopes", registryCache()
	spec.Cache.Scope = "main"
	s.succeed(t, spec)
	spec.Cache.Scope, spec.Cache.FallbackScopes = "feature", []string{"main", "never-built"}
	r := s.succeed(t, spec)
	if len(r.ran()) > 0 {
		t.Errorf("%q ran, want it cached", r.ran())
	}
	for _, tag := range []string{"main", "feature"} {
		labtest.Must(image.Descriptor(t.Context(), s.Registry.Addr+"/cache/scopes:"+tag))(t)
	}
}

// One build for two platforms gives an index with an image for each, and every
// RUN that prepares them runs on the daemon's own.
func TestS10_TwoPlatformsInOneBuild(t *testing.T) {
	s := sharedStack(t)
	spec := dockerfile(`FROM --platform=$BUILDPLATFORM `+s.base+` AS cross
ARG TARGETARCH
RUN echo "made for $TARGETARCH" >/made
FROM scratch
COPY --from=cross /made /made
`, s.ref("s10"))
	spec.Platforms = []string{"linux/amd64", "linux/arm64"}
	r := s.succeed(t, spec)

	desc := labtest.Must(image.Descriptor(t.Context(), s.ref("s10")))(t)
	if desc.Digest.String() != r.outcome.GetOutputs()[0].GetDigest() {
		t.Errorf("the outcome says %s, the registry serves %s", r.outcome.GetOutputs()[0].GetDigest(), desc.Digest)
	}
	if desc.MediaType != types.OCIImageIndex || r.outcome.GetOutputs()[0].GetMediaType() != string(types.OCIImageIndex) {
		t.Errorf("registry: %s, outcome: %s, want an index", desc.MediaType, r.outcome.GetOutputs()[0].GetMediaType())
	}
	for _, arch := range []string{"amd64", "arm64"} {
		if got, want := file(t, s.ref("s10"), "linux/"+arch, "/made"), "made for "+arch+"\n"; got != want {
			t.Errorf("%s: /made is %q, want %q", arch, got, want)
		}
	}
}

// Target, build arguments and labels go where a Dockerfile author expects them.
func TestTargetArgumentsAndLabels(t *testing.T) {
	s := sharedStack(t)
	spec := dockerfile("FROM "+s.base+" AS first\nARG WHO=nobody\nRUN echo \"$WHO\" >/who\nFROM first AS second\nRUN false\n", s.ref("args"))
	spec.Target = "first"
	spec.BuildArgs = map[string]string{"WHO": "some body, = and \"quotes\""}
	spec.Labels = map[string]string{"org.example.label": "a=b,c", "empty": ""}
	s.succeed(t, spec)

	if got, want := file(t, s.ref("args"), "", "/who"), "some body, = and \"quotes\"\n"; got != want {
		t.Errorf("/who is %q, want %q", got, want)
	}
	img := labtest.Must(image.Pull(t.Context(), s.ref("args"), ""))(t)
	labels := labtest.Must(img.ConfigFile())(t).Config.Labels
	if labels["org.example.label"] != "a=b,c" {
		t.Errorf("labels: %q", labels)
	}
	if _, ok := labels["empty"]; !ok {
		t.Errorf("labels: %q", labels)
	}
}

// A directory of the builder's host: .dockerignore holds, a Dockerfile at another
// path is found, and an inline Dockerfile may copy from it.
func TestDirectoryContext(t *testing.T) {
	s := sharedStack(t)
	dir := s.dir(t, map[string]string{
		".dockerignore":    "secret*\n",
		"docker/app.build": "FROM " + s.base + "\nCOPY . /app\nRUN test ! -e /app/secret.txt\n",
		"main.txt":         "main", "secret.txt": "secret", "sub/deep/x": "deep",
	})
	spec := directory(dir, s.ref("dir"))
	spec.Dockerfile = &builderv1.Dockerfile{Source: &builderv1.Dockerfile_Path{Path: "docker/app.build"}}
	s.succeed(t, spec)
	if got := file(t, s.ref("dir"), "", "/app/sub/deep/x"); got != "deep" {
		t.Errorf("/app/sub/deep/x is %q", got)
	}
	spec = directory(dir, s.ref("dir-inline"))
	spec.Dockerfile = &builderv1.Dockerfile{Source: &builderv1.Dockerfile_Inline{Inline: "FROM scratch\nCOPY main.txt /\n"}}
	s.succeed(t, spec)
	if got := file(t, s.ref("dir-inline"), "", "/main.txt"); got != "main" {
		t.Errorf("/main.txt is %q", got)
	}
}

// Modes of inline files arrive.
func TestInlineFileModes(t *testing.T) {
	s := sharedStack(t)
	spec := inline(map[string]string{
		"Dockerfile": "FROM " + s.base + "\nCOPY bin/run /run\nRUN /run\n",
		"bin/run":    "#!/bin/sh\necho it-ran\n",
	})
	spec.GetContext().GetInline().GetFiles()["bin/run"].Mode = 0o755
	if r := s.succeed(t, spec); !strings.Contains(r.log(), "it-ran") {
		t.Errorf("log: %q", r.log())
	}
}

// What a build was stays known: GetBuild by id, ListBuilds newest first, by pages.
func TestRecordsOfBuilds(t *testing.T) {
	s := sharedStack(t)
	var ids []string
	for range 3 {
		spec := dockerfile("FROM scratch\nCOPY <<EOF /x\n"+unique()+"\nEOF\n", s.ref("records"))
		spec.Project = "records"
		ids = append(ids, s.succeed(t, spec).id())
	}
	rec := labtest.Must(s.api.GetBuild(t.Context(), &builderv1.GetBuildRequest{BuildId: ids[2]}))(t).GetBuild()
	if rec.GetProject() != "records" || rec.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED ||
		rec.GetOrigin() != builderv1.BuildOrigin_BUILD_ORIGIN_API || rec.GetDaemon() != "lab" ||
		len(rec.GetTags()) != 1 || rec.GetOutcome().GetOutputs()[0].GetDigest() == "" || rec.GetLastSequence() == 0 {
		t.Errorf("record: %v", rec)
	}
	var listed []string
	token := ""
	for range 3 {
		page := labtest.Must(s.api.ListBuilds(t.Context(), &builderv1.ListBuildsRequest{PageSize: 1, PageToken: token}))(t)
		if len(page.GetBuilds()) != 1 {
			t.Fatalf("a page of %d", len(page.GetBuilds()))
		}
		listed = append(listed, page.GetBuilds()[0].GetId())
		token = page.GetNextPageToken()
	}
	if fmt.Sprint(listed) != fmt.Sprint([]string{ids[2], ids[1], ids[0]}) {
		t.Errorf("listed %v, want the newest first of %v", listed, ids)
	}
}

// A build without an output is done, pushes nothing and names no digest.
func TestBuildWithoutOutput(t *testing.T) {
	s := sharedStack(t)
	r := s.succeed(t, dockerfile("FROM "+s.base+"\nRUN true\n"))
	if n := len(r.outcome.GetOutputs()); n != 0 {
		t.Errorf("%d outputs", n)
	}
}

// What the frontend warns of is an event with the line of the Dockerfile.
func TestWarningsNameTheLine(t *testing.T) {
	s := sharedStack(t)
	r := s.succeed(t, dockerfile("FROM scratch\nCOPY <<EOF /x\nx\nEOF\nENV OLD value\n"))
	for _, e := range r.events {
		if w := e.GetWarning(); w != nil {
			if w.GetStartLine() != 5 || w.GetMessage() == "" {
				t.Errorf("warning: %v", w)
			}
			return
		}
	}
	t.Error("no warning of the old ENV form")
}

// unique is different each time, so that nothing of it is cached.
func unique() string {
	text, _ := json.Marshal(time.Now())
	return strings.Trim(string(text), `"`)
}
