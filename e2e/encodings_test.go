package e2e_test

import (
	"archive/tar"
	"bytes"
	"cmp"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	bkclient "github.com/moby/buildkit/client"
	"github.com/tonistiigi/fsutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	"github.com/kilnbuild/kiln/pkg/buildkitd"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
)

// oddNames are names of files that Linux takes, each in a directory of that name, too.
var oddNames = []string{
	"latin1-caf\xe9",
	"bytes-a\xff\xfe",
	"shift-jis-\x83\x65\x83\x58\x83\x67",
	"shift-jis-with-a-backslash-\x83\x5c",
	"lone-surrogate-\xed\xa0\x80",
	"nfc-\u00e9",
	"nfd-e\u0301",
	"new\nline",
	"-dash",
	" space ",
	"tab\t",
	"emoji-\U0001f525",
	"255-" + strings.Repeat("x", 251),
	"255-bytes-" + strings.Repeat("\xe9", 245),
}

// odd returns the files of a context with odd names: by path, the content.
func odd(only func(string) bool) map[string]string {
	files := map[string]string{}
	for i, name := range oddNames {
		if only(name) {
			files["ctx/"+name] = "file " + string(rune('a'+i))
			files["ctx/in-"+string(rune('a'+i))+"/"+name] = "nested " + string(rune('a'+i))
		}
	}
	return files
}

func everyName(string) bool { return true }

const oddDockerfile = "FROM scratch\nCOPY ctx /\n"

// inImage pulls an image and returns the content of its files by path.
func inImage(t *testing.T, ref string) map[string]string {
	t.Helper()
	img := labtest.Must(image.Pull(labtest.Context(t, time.Minute), ref, ""))(t)
	files := map[string]string{}
	for _, layer := range labtest.Must(img.Layers())(t) {
		stream := labtest.Must(layer.Uncompressed())(t)
		for r := tar.NewReader(stream); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeReg {
				files["ctx/"+h.Name] = string(labtest.Must(io.ReadAll(r))(t))
			}
		}
		_ = stream.Close()
	}
	return files
}

// sameContent compares what an image has with what it must have.
func sameContent(t *testing.T, got, want map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if content, there := got[name]; !there {
			t.Errorf("%q is missing", name)
		} else if content != want[name] {
			t.Errorf("%q holds %q, want %q", name, content, want[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if _, asked := want[name]; !asked {
			t.Errorf("%q is there", name)
		}
	}
}

// Each entrance builds what buildctl builds on the daemon itself.
func TestFileNames_EveryEncodingAtEveryEntrance(t *testing.T) {
	s := sharedStack(t)
	dir := s.dir(t, odd(everyName))
	labtest.Write(t, dir, map[string]string{"Dockerfile": oddDockerfile})
	config := t.TempDir()
	run := func(t *testing.T, c lab.Command) {
		t.Helper()
		labtest.Must(lab.Exec(labtest.Context(t, 2*time.Minute), c))(t)
	}
	run(t, buildx(t, config, "create", "--name", "kiln", "--driver", "remote", "tcp://"+s.Builder.Addr))
	pushed := func(ref string) []string { return []string{"--output", "type=image,push=true,name=" + ref} }
	byRPC := func(t *testing.T, ref string, from *builderv1.Context) {
		s.succeed(t, &builderv1.BuildSpec{Context: from, Dockerfile: dockerfile(oddDockerfile).GetDockerfile(), Outputs: push(ref)})
	}

	run(t, buildctl(t, s.Buildkitd.Addr, dir, pushed(s.ref("odd-reference"))...))
	sameContent(t, inImage(t, s.ref("odd-reference")), odd(everyName))

	utf8Only := odd(utf8.ValidString)
	for name, entrance := range map[string]struct {
		build func(t *testing.T, ref string)
		want  map[string]string
	}{
		"buildctl": {func(t *testing.T, ref string) { run(t, buildctl(t, "tcp://"+s.Builder.Addr, dir, pushed(ref)...)) }, odd(everyName)},
		"buildx": {func(t *testing.T, ref string) {
			run(t, buildx(t, config, "build", "--builder", "kiln", "--progress", "plain", "--provenance=false", "--push", "-t", ref, dir))
		}, odd(everyName)},
		"kiln-build": {func(t *testing.T, ref string) {
			labtest.Must(s.kiln(t, "build", dir, dir, ref, "--push", "--progress", "plain"))(t)
		}, odd(everyName)},
		"directory": {func(t *testing.T, ref string) {
			byRPC(t, ref, &builderv1.Context{Kind: &builderv1.Context_Directory{Directory: &builderv1.DirectoryContext{Path: dir}}})
		}, odd(everyName)},
		"upload": {func(t *testing.T, ref string) {
			up := s.stored(t, bytes.NewReader(tarOfDir(t, dir)), "")
			byRPC(t, ref, uploaded(up.GetDigest()))
		}, odd(everyName)},
		"upload-by-the-client": {func(t *testing.T, ref string) {
			up := labtest.Must(s.client(t, s.Builder.Addr).UploadDir(labtest.Context(t, time.Minute), "default", dir))(t)
			byRPC(t, ref, uploaded(up.GetDigest()))
		}, odd(everyName)},
		// The paths of inline files are strings of the contract, which are UTF-8.
		"inline": {func(t *testing.T, ref string) {
			spec := inline(utf8Only)
			spec.Dockerfile, spec.Outputs = dockerfile(oddDockerfile).GetDockerfile(), push(ref)
			s.succeed(t, spec)
		}, utf8Only},
	} {
		t.Run(name, func(t *testing.T) {
			ref := s.ref("odd-" + name)
			entrance.build(t, ref)
			sameContent(t, inImage(t, ref), entrance.want)
		})
	}
}

func uploaded(digest string) *builderv1.Context {
	return &builderv1.Context{Kind: &builderv1.Context_Uploaded{Uploaded: &builderv1.UploadedContext{Digest: digest}}}
}

// buildx is the command with a configuration of its own.
func buildx(t *testing.T, config string, args ...string) lab.Command {
	t.Helper()
	return lab.Command{
		Name: "buildx", Path: labtest.Must(lab.Bin("buildx"))(t), Args: args,
		Env: []string{"BUILDX_CONFIG=" + config, "DOCKER_CONFIG=" + config},
	}
}

// tarOfDir packs the regular files of a directory as other programs do: names are the bytes that
// they are.
func tarOfDir(t *testing.T, dir string) []byte {
	t.Helper()
	var headers []*tar.Header
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name := labtest.Must(filepath.Rel(dir, path))(t)
		headers = append(headers, entry(name, string(labtest.Must(os.ReadFile(path))(t))))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tarOf(t, headers...)
}

// What is not UTF-8 in a Dockerfile is the user's to correct, where BuildKit does not take it; and
// it says so, whoever asks.
func TestDockerfile_NotUTF8IsTheUsersError(t *testing.T) {
	s := sharedStack(t)
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\nRUN echo caf\xe9\n"})
	_, failure := s.fail(t, directory(dir, s.ref("latin1-run")))
	if failure.GetClass() != errorsv1.FailureClass_FAILURE_CLASS_USER {
		t.Errorf("class %v: %v", failure.GetClass(), failure)
	}
	if out, err := s.kiln(t, "build", dir, dir, s.ref("latin1-run"), "--progress", "plain"); err == nil || !strings.Contains(out.Stderr, "UTF-8") {
		t.Errorf("kiln build: %v\n%s", err, out.Stderr)
	}
}

// A build argument that is not UTF-8 comes to the daemon as it is. BuildKit takes it where no step
// uses it, and the build's record is one like others.
func TestGateway_PassesArgumentThatIsNotUTF8(t *testing.T) {
	s := sharedStack(t)
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM scratch\nARG NAME\nCOPY Dockerfile /" + unique() + "\n"})
	for _, address := range []string{s.Buildkitd.Addr, "tcp://" + s.Builder.Addr} {
		labtest.Must(lab.Exec(labtest.Context(t, time.Minute), buildctl(t, address, dir, "--opt", "build-arg:NAME=caf\xe9")))(t)
	}
	rec := labtest.Must(s.api.ListBuilds(t.Context(), &builderv1.ListBuildsRequest{PageSize: 1}))(t).GetBuilds()[0]
	if rec.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED || rec.GetOrigin() != builderv1.BuildOrigin_BUILD_ORIGIN_GATEWAY {
		t.Errorf("record: %v", rec)
	}
}

// Records that are not UTF-8, or cannot be named, do not stop the cache manager: it goes on with
// all others, counts what it cannot read, and lets that stay.
func TestCacheManager_GoesOnBesideRecordsThatAreNotUTF8(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{}))(t)
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM scratch\nARG NAME\nCOPY caf* /\n", "caf\xe9": "x"})
	labtest.Must(lab.Exec(ctx, buildctl(t, daemon.Addr, dir, "--opt", "build-arg:NAME=caf\xe9")))(t)
	solveWithRef(t, daemon.Addr, dir, "ref-\xff")

	m := startCacheManager(t, l, &configv1.CacheManagerConfig{}, nil, daemon)
	if got := healthOf(t, m.Addr); got != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v", got)
	}
	history := func() (n int) {
		res := labtest.Must(m.api.ListRecords(ctx, &cachemanagerv1.ListRecordsRequest{Filter: `type = "HISTORY"`}))(t)
		return len(res.GetRecords())
	}
	if n := history(); n != 1 {
		t.Errorf("%d builds in the history, want 1: the other has no id that can be written", n)
	}
	last := m.empty(t)
	if last.GetState() != cachemanagerv1.RunState_RUN_STATE_SUCCEEDED || last.GetRemoved().GetRecords() == 0 || last.GetCaches()[0].GetUnreadableRecords() != 1 {
		t.Errorf("the run: %v", last)
	}
	if n := history(); n != 0 {
		t.Errorf("%d builds are left in the history", n)
	}
	if got := metric(t, m.Service, "kiln_cache_records_unreadable", `daemon="a"`); got != "1" {
		t.Errorf("kiln_cache_records_unreadable is %q", got)
	}
}

// solveWithRef builds a directory as BuildKit's own client would under an id of its choice.
func solveWithRef(t *testing.T, address, dir, ref string) {
	t.Helper()
	ctx := labtest.Context(t, time.Minute)
	c := labtest.Must(buildkitd.Client(ctx, buildkitd.Options{Daemon: &configv1.DaemonConfig{Address: address}}))(t)
	defer c.Close()
	files := labtest.Must(fsutil.NewFS(dir))(t)
	labtest.Must(c.Solve(ctx, nil, bkclient.SolveOpt{
		Ref: ref, Frontend: "dockerfile.v0", LocalMounts: map[string]fsutil.FS{"context": files, "dockerfile": files},
	}, nil))(t)
}

// empty removes all that can be removed, once no other run is under way.
func (m cacheManager) empty(t *testing.T) *cachemanagerv1.Run {
	t.Helper()
	policy := &cachemanagerv1.Policy{Rules: []*cachemanagerv1.Rule{{Name: "none", Keep: &cachemanagerv1.Keep{Records: new(int64)}}}}
	req := &cachemanagerv1.PruneRequest{Force: true, ForceAll: true, By: &cachemanagerv1.PruneRequest_Policy{Policy: policy}}
	var finished *cachemanagerv1.Run
	labtest.Eventually(t, 30*time.Second, "a run that empties the caches", func() bool {
		stream := labtest.Must(m.api.Prune(labtest.Context(t, time.Minute), req))(t)
		for {
			res, err := stream.Recv()
			switch {
			case errors.Is(err, io.EOF):
				return finished != nil
			case status.Code(err) == codes.AlreadyExists:
				return false
			case err != nil:
				t.Fatal(err)
			}
			finished = cmp.Or(res.GetFinished(), finished)
		}
	})
	return finished
}
