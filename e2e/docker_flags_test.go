package e2e_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

// clients are `kiln` and `docker buildx`, which build through the same builder.
type clients struct {
	s      *stack
	config string // of buildx
	dir    string // where both run
}

func newClients(t *testing.T, s *stack, dir string) *clients {
	t.Helper()
	c := &clients{s: s, config: t.TempDir(), dir: dir}
	labtest.Must(c.buildx(t, "", "create", "--name", "kiln", "--driver", "remote", "--use", "tcp://"+s.Builder.Addr))(t)
	return c
}

func (c *clients) buildx(t *testing.T, stdin string, args ...string) (lab.Output, error) {
	t.Helper()
	return c.run(t, "buildx", stdin, args)
}

func (c *clients) kiln(t *testing.T, stdin string, args ...string) (lab.Output, error) {
	t.Helper()
	return c.run(t, "kiln", stdin, args)
}

func (c *clients) run(t *testing.T, program, stdin string, args []string) (lab.Output, error) {
	t.Helper()
	return lab.Exec(labtest.Context(t, 2*time.Minute), lab.Command{
		Path: labtest.Must(lab.Bin(program))(t), Args: args, Dir: c.dir, Stdin: stdin,
		Env: []string{
			"BUILDX_CONFIG=" + c.config, "DOCKER_CONFIG=" + c.config, "KILN_BUILDER=" + c.s.Builder.Addr, "GHA=", "FROM_ENV=from-env",
			"XDG_CONFIG_HOME=" + c.config,
		},
	})
}

// flagCase is how kiln treats a flag of docker buildx build.
type flagCase struct {
	args    []string // with the flag
	refused string   // what the error says. Empty: it builds, as with buildx
	warned  string   // what standard error says of it
}

// flagCases has a case for each flag of docker buildx build. %o is a directory for
// outputs, %r a reference to push to, %c a reference for caches.
var flagCases = map[string]flagCase{
	"add-host":        {args: []string{"--add-host", "a:1.2.3.4"}},
	"allow":           {args: []string{"--allow", "network.host"}},
	"annotation":      {args: []string{"--annotation", "manifest:a=b", "--push", "-t", "%r"}},
	"attest":          {args: []string{"--attest", "type=provenance,mode=max", "--push", "-t", "%r"}},
	"build-arg":       {args: []string{"--build-arg", "WHO=me"}},
	"build-context":   {args: []string{"--build-context", "more=."}},
	"cache-from":      {args: []string{"--cache-from", "%c"}},
	"cache-to":        {args: []string{"--cache-to", "type=registry,ref=%c,mode=max"}},
	"call":            {args: []string{"--call", "outline"}},
	"cgroup-parent":   {args: []string{"--cgroup-parent", "/kiln-test"}},
	"check":           {args: []string{"--check"}},
	"compress":        {args: []string{"--compress"}, warned: "--compress has no effect"},
	"cpu-period":      {args: []string{"--cpu-period", "100000"}},
	"cpu-quota":       {args: []string{"--cpu-quota", "50000"}},
	"cpu-shares":      {args: []string{"-c", "512"}},
	"cpuset-cpus":     {args: []string{"--cpuset-cpus", "0"}},
	"cpuset-mems":     {args: []string{"--cpuset-mems", "0"}},
	"file":            {args: []string{"-f", "Dockerfile"}},
	"force-rm":        {args: []string{"--force-rm"}, warned: "--force-rm has no effect"},
	"iidfile":         {args: []string{"--iidfile", "%o/iid", "--push", "-t", "%r"}},
	"isolation":       {args: []string{"--isolation", "default"}, warned: "--isolation has no effect"},
	"label":           {args: []string{"--label", "a=b"}},
	"load":            {args: []string{"--load", "-t", "web:1", "--platform", "linux/amd64,linux/arm64"}, refused: "--push"},
	"memory":          {args: []string{"-m", "512m"}},
	"memory-swap":     {args: []string{"--memory-swap", "-1"}},
	"metadata-file":   {args: []string{"--metadata-file", "%o/metadata", "--push", "-t", "%r"}},
	"network":         {args: []string{"--network", "none"}},
	"no-cache":        {args: []string{"--no-cache"}},
	"no-cache-filter": {args: []string{"--no-cache-filter", "first"}},
	"output":          {args: []string{"-o", "%o/out"}},
	"platform":        {args: []string{"--platform", "local"}},
	"policy":          {args: []string{"--policy", "filename=x.rego"}, refused: "the builder's own policy"},
	"print":           {args: []string{"--print", "outline"}},
	"progress":        {args: []string{"--progress", "none"}},
	"provenance":      {args: []string{"--provenance=false"}},
	"pull":            {args: []string{"--pull"}},
	"push":            {args: []string{"--push", "-t", "%r"}},
	"quiet":           {args: []string{"-q"}},
	"resource":        {args: []string{"--resource", "memory=512m"}},
	"rm":              {args: []string{"--rm"}, warned: "--rm has no effect"},
	"sbom":            {args: []string{"--sbom=false"}},
	"secret":          {args: []string{"--secret", "id=x,src=Dockerfile"}},
	"security-opt":    {args: []string{"--security-opt", "x"}, warned: "--security-opt has no effect"},
	"shm-size":        {args: []string{"--shm-size", "32m"}},
	"squash":          {args: []string{"--squash"}, warned: "--squash has no effect"},
	"ssh":             {args: []string{"--ssh", "x=%o/key"}},
	"tag":             {args: []string{"-t", "web:1"}},
	"target":          {args: []string{"--target", "first"}},
	"ulimit":          {args: []string{"--ulimit", "nofile=512:1024"}},
}

// buildxFlags are the names of the flags in the source of the pinned buildx.
func buildxFlags(t *testing.T) []string {
	t.Helper()
	out := labtest.Must(lab.Exec(labtest.Context(t, time.Minute), lab.Command{
		Path: "/usr/bin/env", Args: []string{"go", "list", "-m", "-f", "{{.Dir}}", "github.com/docker/buildx"}, Env: []string{"GOWORK=off", "GOFLAGS=-mod=mod"}, Dir: "../tools/buildx",
	}))(t)
	text := string(labtest.Must(os.ReadFile(filepath.Join(strings.TrimSpace(out.Stdout), "commands", "build.go")))(t))
	var names []string
	seen := map[string]bool{}
	for _, m := range regexp.MustCompile(`flags\.(?:\w*Var\w*|Bool)\([^"\n]*?"([a-z-]+)",`).FindAllStringSubmatch(text, -1) {
		if !seen[m[1]] {
			seen[m[1]] = true
			names = append(names, m[1])
		}
	}
	for _, m := range regexp.MustCompile(`flags\.VarPF\(callAlias\([^)]*\), "([a-z-]+)"`).FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	if len(names) < 45 {
		t.Fatalf("%d flags in buildx's source: %v", len(names), names)
	}
	return names
}

// Each flag of docker buildx build means the same to kiln build, or is refused with
// what to do; none is ignored in silence. A flag that buildx gains fails the test.
func TestDockerFlags_EachOfBuildxIsHeededOrRefused(t *testing.T) {
	s := sharedStack(t)
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + " AS first\nARG WHO\nRUN echo first >/x\nFROM first\nRUN echo second >/y\n"})
	key := filepath.Join(t.TempDir(), "key")
	labtest.Must(lab.Exec(labtest.Context(t, time.Minute), lab.Command{Path: "/usr/bin/env", Args: []string{"ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key}}))(t)
	c := newClients(t, s, dir)
	for _, name := range buildxFlags(t) {
		test, known := flagCases[name]
		if !known {
			t.Errorf("buildx has a flag --%s, and no case says how kiln build treats it", name)
			continue
		}
		args := []string{"build"}
		outputs := t.TempDir()
		labtest.Write(t, outputs, map[string]string{"key": string(labtest.Must(os.ReadFile(key))(t))})
		labtest.Must(0, os.Chmod(filepath.Join(outputs, "key"), 0o600))(t)
		for _, arg := range test.args {
			args = append(args, strings.NewReplacer("%o", outputs, "%r", s.ref("flags"), "%c", s.Registry.Addr+"/cache/flags").Replace(arg))
		}
		out, err := c.kiln(t, "", append(args, ".")...)
		switch {
		case test.refused != "":
			if err == nil || !strings.Contains(out.Stderr, "--"+name) || !strings.Contains(out.Stderr, test.refused) {
				t.Errorf("--%s is to be refused: %v\n%s", name, err, out.Stderr)
			}
		case err != nil:
			t.Errorf("--%s: %v", name, err)
		case test.warned != "" && !strings.Contains(out.Stderr, test.warned):
			t.Errorf("--%s: no %q in %s", name, test.warned, out.Stderr)
		}
		if test.refused == "" {
			if _, err := c.buildx(t, "", append(args, ".")...); err != nil {
				t.Errorf("the case of --%s is wrong, buildx refuses it: %v", name, err)
			}
		}
	}
}

// Flags for steps, files, stages and arguments reach the build as with buildx: both
// export the same files.
func TestDockerFlags_StepsSeeTheSame(t *testing.T) {
	s := sharedStack(t)
	dir := s.dir(t, map[string]string{
		".dockerignore": "ignored\n", "ignored": "x", "a.txt": "a", "docker/my.Dockerfile": "FROM " + s.base + ` AS build
ARG WHO
ARG FROM_ENV
ARG SOURCE_DATE_EPOCH
COPY . /context
COPY --from=more . /more
COPY --from=image /bin/busybox /more/busybox
RUN --mount=type=secret,id=s mkdir /out && cp /run/secrets/s /out/secret && echo "$WHO $FROM_ENV" >/out/args && ls /context /more >/out/ls && \
  grep 1.2.3.4 /etc/hosts >/out/hosts && ulimit -n >/out/ulimit && df -k /dev/shm | awk 'END { print $2 }' >/out/shm && ls /sys/class/net >/out/net
FROM scratch AS result
COPY --from=build /out /
FROM ` + s.base + `
RUN false
`, "more/b.txt": "b",
	})
	c := newClients(t, s, dir)
	args := []string{
		"-f", "docker/my.Dockerfile", "--target", "result", "--build-arg", "WHO=me", "--build-arg", "FROM_ENV", "--build-context", "more=more",
		"--build-context", "image=docker-image://" + s.base, "--secret", "id=s,src=a.txt", "--add-host", "other:1.2.3.4", "--ulimit", "nofile=600:700",
		"--shm-size", "32m", "--network", "none", "--no-cache",
	}
	kiln, buildx := t.TempDir(), t.TempDir()
	labtest.Must(c.kiln(t, "", append(append([]string{"build", "-o", kiln}, args...), ".")...))(t)
	labtest.Must(c.buildx(t, "", append(append([]string{"build", "-o", buildx}, args...), ".")...))(t)
	sameFiles(t, kiln, buildx)
	if got := string(labtest.Must(os.ReadFile(filepath.Join(kiln, "args")))(t)); got != "me from-env\n" {
		t.Errorf("arguments %q", got)
	}
}

// sameFiles fails the test when two directories differ.
func sameFiles(t *testing.T, one, other string) {
	t.Helper()
	out, err := lab.Exec(labtest.Context(t, time.Minute), lab.Command{Path: "/usr/bin/env", Args: []string{"diff", "-r", one, other}})
	if err != nil {
		t.Errorf("kiln and buildx differ: %s", out.Stdout)
	}
	if entries := labtest.Must(os.ReadDir(one))(t); len(entries) == 0 {
		t.Errorf("nothing was exported to %s", one)
	}
}
