package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
)

// parsed parses a command line as the command does, with a standard input.
func parsed(t *testing.T, stdin string, args ...string) (*options, error) {
	t.Helper()
	for _, name := range []string{"DOCKER_DEFAULT_PLATFORM", "BUILDKIT_PROGRESS", "SOURCE_DATE_EPOCH", "BUILDX_NO_DEFAULT_ATTESTATIONS", "KILN_PROJECT", "KILN_CACHE_DIR"} {
		if os.Getenv(name) != "" {
			t.Setenv(name, "")
		}
	}
	o := &options{}
	cmd := Command()
	cmd.ResetFlags()
	o.addFlags(cmd)
	if err := cmd.ParseFlags(args); err != nil {
		return nil, err
	}
	if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
		return nil, err
	}
	t.Cleanup(o.cleanUp)
	if err := o.complete(cmd.Flags().Args(), strings.NewReader(stdin)); err != nil {
		return o, err
	}
	return o, o.checkDetached(cmd.Flags())
}

func mustParse(t *testing.T, args ...string) *options {
	t.Helper()
	o, err := parsed(t, "", args...)
	if err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return o
}

func TestArguments_BothFormsNameTheSameBuild(t *testing.T) {
	inside, outside := dirs(t)
	docker := mustParse(t, "-t", "localhost:5000/web:1", "-f", filepath.Join(outside, "Dockerfile"), "--push", inside)
	three := mustParse(t, "--push", inside, outside, "localhost:5000/web:1")
	for _, o := range []*options{docker, three} {
		if o.contextDir != inside || o.dockerfileDir != outside || o.dockerfileName != "Dockerfile" || o.project != "web" ||
			len(o.tags) != 1 || o.tags[0] != "localhost:5000/web:1" || !o.pushes() || o.outputs[0].Attrs["name"] != "localhost:5000/web:1" {
			t.Errorf("%+v", o)
		}
	}
	several := mustParse(t, "-t", "a/web", "--tag", "b/web:2", inside, outside, "c/web")
	if got := strings.Join(several.tags, " "); got != "docker.io/c/web:latest docker.io/a/web:latest docker.io/b/web:2" {
		t.Errorf("tags %s", got)
	}
}

func TestArguments_WithoutATagTheContextNamesTheProject(t *testing.T) {
	inside, _ := dirs(t)
	dir := filepath.Join(filepath.Dir(inside), "My App_2")
	if err := os.Rename(inside, dir); err != nil {
		t.Fatal(err)
	}
	docker := filepath.Join(dir, "docker", "Dockerfile")
	if o := mustParse(t, "-f", docker, dir); o.project != "my-app-2" {
		t.Errorf("project %s", o.project)
	}
	if o := mustParse(t, "https://example.com/team/Web.git#main"); o.project != "web" || o.contextURL == "" {
		t.Errorf("%+v", o)
	}
}

func TestOutputs_HaveDockersShortForms(t *testing.T) {
	inside, _ := dirs(t)
	dockerfile := filepath.Join(inside, "docker", "Dockerfile")
	for _, test := range []struct {
		args []string
		want client.ExportEntry
	}{
		{[]string{"-o", "out"}, client.ExportEntry{Type: "local", Attrs: map[string]string{"dest": "out"}}},
		{[]string{"-o", "-"}, client.ExportEntry{Type: "tar", Attrs: map[string]string{"dest": "-"}}},
		{[]string{"-o", "type=local,dest=a=b"}, client.ExportEntry{Type: "local", Attrs: map[string]string{"dest": "a=b"}}},
		{[]string{"-t", "w", "-o", "type=registry"}, client.ExportEntry{Type: "image", Attrs: map[string]string{
			"push": "true", "unpack": "false", "name": "docker.io/library/w:latest",
		}}},
		{[]string{"-t", "w", "-o", "type=image", "--push"}, client.ExportEntry{Type: "image", Attrs: map[string]string{
			"push": "true", "unpack": "false", "name": "docker.io/library/w:latest",
		}}},
		{[]string{"-t", "w", "-o", `type=oci,dest=x.tar,"annotation.a=b,c"`}, client.ExportEntry{Type: "oci", Attrs: map[string]string{
			"dest": "x.tar", "annotation.a": "b,c", "name": "docker.io/library/w:latest",
		}}},
	} {
		o := mustParse(t, append(test.args, "-f", dockerfile, inside)...)
		if len(o.outputs) != 1 || o.outputs[0].Type != test.want.Type || !equal(o.outputs[0].Attrs, test.want.Attrs) {
			t.Errorf("%q: %+v", test.args, o.outputs)
		}
	}
	if o := mustParse(t, "-o", "-", "-o", "type=local,dest=d", "-f", dockerfile, inside); !o.stdoutTaken || len(o.outputs) != 2 {
		t.Errorf("%+v", o.outputs)
	}
}

func equal(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for key, value := range a {
		if b[key] != value {
			return false
		}
	}
	return true
}

// Each refusal names the flag and says what to do.
func TestFlags_RefusalsNameTheFlagAndTheRemedy(t *testing.T) {
	inside, outside := dirs(t)
	dockerfile := filepath.Join(inside, "docker", "Dockerfile")
	in := func(args ...string) []string { return append(args, "-f", dockerfile, inside) }
	for _, test := range []struct {
		args []string
		want []string
	}{
		{[]string{inside, outside}, []string{"kiln build -t web:dev ."}},
		{[]string{"-f", "x", inside, outside, "web"}, []string{"--file", "DOCKERFILE_DIR"}},
		{[]string{inside}, []string{"no Dockerfile", "--file"}},
		{[]string{"-f", "missing", inside}, []string{"missing", "working directory"}},
		{[]string{"-f", "https://example.com/Dockerfile", inside}, []string{"--file", "download"}},
		{in("-o", "type=x"), []string{"--output", "local, tar"}},
		{in("-o", "dest=x,mode=y"), []string{"--output", "type"}},
		{in("-o", "-", "-o", "type=tar"), []string{"--output", "dest=FILE"}},
		{in("--push"), []string{"-t"}},
		{in("--load", "--platform", "linux/amd64,linux/arm64"), []string{"--load", "--push"}},
		{in("--iidfile", "x", "-o", "out"), []string{"--iidfile", "leave one"}},
		{in("--no-cache", "--no-cache-filter", "a"), []string{"--no-cache-filter"}},
		{in("-q", "--progress", "plain"), []string{"--quiet", "--progress"}},
		{in("--platform", "?"), []string{"--platform", "linux/amd64"}},
		{in("--network", "mine"), []string{"--network", "none or host"}},
		{in("--add-host", "a:host-gateway"), []string{"--add-host", "address"}},
		{in("--add-host", "a"), []string{"--add-host", "HOST:IP"}},
		{in("--shm-size", "much"), []string{"--shm-size", "64m"}},
		{in("--ulimit", "x"), []string{"--ulimit", "nofile"}},
		{in("--memory", "much"), []string{"--resource", "memory=much"}},
		{in("--allow", "all"), []string{"--allow", "network.host"}},
		{in("--policy", "filename=p.rego"), []string{"--policy", "builder.yaml"}},
		{in("--annotation", "x"), []string{"--annotation", "KEY=VALUE"}},
		{in("--annotation", "x:y=z"), []string{"--annotation", "manifest"}},
		{in("--attest", "mode=max"), []string{"--attest", "type"}},
		{in("--cache-to", "dest=x"), []string{"--cache-to", "type"}},
		{in("--build-context", "x"), []string{"--build-context", "NAME="}},
		{in("--call", "check,x=1"), []string{"--call", "x=1"}},
		{in("--detach", "-o", "out"), []string{"--output", "--detach"}},
		{in("--build-arg", "A=\xff"), []string{`--build-arg "A=\xff"`, "UTF-8"}},
		{in("--label", "A=\xff"), []string{`--label "A=\xff"`, "UTF-8"}},
		{in("-o", "type=local,mode=delete,dest=/srv/x"), []string{"--allow buildx.local.delete"}},
	} {
		_, err := parsed(t, "", test.args...)
		if err == nil {
			t.Errorf("%q was taken", test.args)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v, want %q in it", test.args, err, want)
			}
		}
	}
}

func TestStandardInput_IsATarOrADockerfile(t *testing.T) {
	inside, _ := dirs(t)
	o, err := parsed(t, "FROM scratch\n", "-")
	if err != nil || o.contextDir == "" || !o.ownDockerfile {
		t.Errorf("a Dockerfile as the context: %+v, %v", o, err)
	}
	if entries, err := os.ReadDir(o.contextDir); err != nil || len(entries) != 0 {
		t.Errorf("its context has %v, %v", entries, err)
	}
	o, err = parsed(t, "FROM scratch\n", "-f", "-", inside)
	if err != nil || o.contextDir != inside || !o.ownDockerfile {
		t.Errorf("a Dockerfile for a directory: %+v, %v", o, err)
	}
	if o, err = parsed(t, "\x1f\x8b\x08"+strings.Repeat("x", 100), "-f", "sub/Dockerfile", "-"); err != nil || o.contextTar == nil || o.dockerfileName != "sub/Dockerfile" {
		t.Errorf("a compressed tar: %+v, %v", o, err)
	}
	for _, args := range [][]string{{"-f", "-", "-"}, {"-f", "x", "-"}} {
		if _, err := parsed(t, "FROM scratch\n", args...); err == nil || !strings.Contains(err.Error(), "leave out one") {
			t.Errorf("%q: %v", args, err)
		}
	}
	if _, err := parsed(t, "", "-"); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Errorf("nothing on standard input: %v", err)
	}
}

func TestFrontendAttributes_MeanWhatDockerMeans(t *testing.T) {
	inside, _ := dirs(t)
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	o := mustParse(t, "--no-cache-filter", "a", "--no-cache-filter", "b", "--pull", "--target", "t", "--platform", "linux/arm64", "--label", "l", "--build-arg", "X=1",
		"--sbom=true", "--attest", "type=provenance,mode=max", "-f", filepath.Join(inside, "docker", "Dockerfile"), inside)
	attrs, err := o.frontendAttrs()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"no-cache": "a,b", "image-resolve-mode": "pull", "target": "t", "platform": "linux/arm64", "label:l": "", "build-arg:X": "1",
		"attest:sbom": "type=sbom", "attest:provenance": "mode=max,type=provenance",
	}
	if !equal(attrs, want) {
		t.Errorf("%v, want %v", attrs, want)
	}
	steps, rights, _, err := (&stepFlags{
		addHosts: []string{"a:1.2.3.4", "b=[::1]"}, network: "host", shmSize: "64m", ulimits: []string{"nofile=1:2", "nofile=3:4"}, resources: []string{"memory=1g"},
		allow: []string{"security.insecure"}, cgroupParent: "/x",
	}).attrs()
	wantSteps := map[string]string{
		"add-hosts": "a=1.2.3.4,b=::1", "force-network-mode": "host", "shm-size": "67108864", "ulimit": "nofile=3:4", "memory": "1073741824", "cgroup-parent": "/x",
	}
	if err != nil || !equal(steps, wantSteps) || strings.Join(rights, " ") != "security.insecure network.host" {
		t.Errorf("%v, %v, %v", steps, rights, err)
	}
}

func TestProvenance_IsSmallByDefaultInDockersForm(t *testing.T) {
	inside, outside := dirs(t)
	dockerfile := filepath.Join(outside, "Dockerfile")
	of := func(args ...string) string {
		o := mustParse(t, args...)
		attrs := map[string]string{}
		if err := o.setAttests(attrs); err != nil {
			t.Fatal(err)
		}
		return attrs["attest:provenance"]
	}
	if got := of("-f", dockerfile, inside); got != "mode=min,inline-only=true" {
		t.Errorf("Docker's form: %q", got)
	}
	if got := of(inside, outside, "web"); got != "" {
		t.Errorf("three arguments: %q", got)
	}
	if got := of("--provenance=false", "-f", dockerfile, inside); got != "" {
		t.Errorf("--provenance=false: %q", got)
	}
	t.Setenv("BUILDX_NO_DEFAULT_ATTESTATIONS", "1")
	o := mustParse(t, "-f", dockerfile, inside)
	t.Setenv("BUILDX_NO_DEFAULT_ATTESTATIONS", "1")
	attrs := map[string]string{}
	if err := o.setAttests(attrs); err != nil || len(attrs) > 0 {
		t.Errorf("%v, %v", attrs, err)
	}
}

func TestCacheScopes_AreReadBesideTheOwnOne(t *testing.T) {
	o := &options{registryCache: true, cacheRepository: "r/cache", project: "web", cacheScope: "feature", cacheFromScopes: []string{"main"}}
	from, to := o.cacheEntries()
	if len(from) != 2 || from[0].Attrs["ref"] != "r/cache/web:feature" || from[1].Attrs["ref"] != "r/cache/web:main" || to.Attrs["ref"] != "r/cache/web:feature" {
		t.Errorf("%v, %v", from, to)
	}
	o = &options{registryCache: true, cacheRepository: "r/cache", project: "web", tags: []string{"localhost:5000/web:1"}}
	if _, to := o.cacheEntries(); to.Attrs["ref"] != "r/cache/web:native" {
		t.Errorf("the plain build writes to %v", to)
	}
	o.platforms = []string{"linux/arm64"}
	from, to = o.cacheEntries()
	if to.Attrs["ref"] != "r/cache/web:linux-arm64" || from[0].Attrs["ref"] != to.Attrs["ref"] || from[len(from)-1].Attrs["ref"] != "r/cache/web:native" {
		t.Errorf("arm64: %v, %v", from, to)
	}
}
