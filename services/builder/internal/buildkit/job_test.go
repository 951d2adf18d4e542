package buildkit

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/client"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/guard"
	"github.com/kilnbuild/kiln/services/builder/internal/hostdir"
	"github.com/kilnbuild/kiln/services/builder/internal/policy"
)

// prepared is what BuildKit would be asked for.
func prepared(t *testing.T, roots hostdir.Roots, spec build.Spec) (client.SolveOpt, error) {
	t.Helper()
	d := &Daemon{opts: Options{
		Roots: roots, Guard: guard.New(guard.Policy{}, slog.New(slog.DiscardHandler)),
		Policy: policy.New(&configv1.BuildPolicyConfig{Frontends: []string{"registry.example/f:*"}, SbomGenerator: "registry.example/scan:1"}),
	}}
	j, err := d.prepare("id", spec)
	if err != nil {
		return client.SolveOpt{}, err
	}
	return j.opt, j.close()
}

func inlineSpec(dockerfile string) build.Spec {
	return build.Spec{Context: build.Context{Inline: &build.InlineContext{}}, Dockerfile: build.Dockerfile{Inline: dockerfile}}
}

// One rule holds for the image of a frontend, in whatever form a request names it.
func TestFrontendImage_IsJudgedAlikeInEveryForm(t *testing.T) {
	forms := map[string]func(image string) build.Spec{
		"syntax line": func(image string) build.Spec { return inlineSpec("# syntax=" + image + "\nFROM a") },
		"argument": func(image string) build.Spec {
			spec := inlineSpec("# syntax=evil/line:1\nFROM a") // BuildKit, too, lets the argument win
			spec.BuildArgs = map[string]string{"BUILDKIT_SYNTAX": image}
			return spec
		},
		"frontend": func(image string) build.Spec {
			spec := inlineSpec("FROM a")
			spec.Frontend = build.Frontend{Name: "gateway.v0", Attributes: map[string]string{"source": image}}
			return spec
		},
	}
	for image, want := range map[string]struct {
		frontend string // empty: denied
		source   string
	}{
		"docker/dockerfile:1":                 {"dockerfile.v0", ""},
		"docker.io/docker/dockerfile:1.10":    {"dockerfile.v0", ""},
		"docker/dockerfile:1-labs":            {"gateway.v0", "docker/dockerfile:1-labs"},
		"registry.example/f:1":                {"gateway.v0", "registry.example/f:1"},
		"docker/dockerfile-upstream:master":   {},
		"evil.example/docker/dockerfile:1":    {},
		"docker.io/docker/dockerfile/other:1": {},
	} {
		for form, spec := range forms {
			opt, err := prepared(t, nil, spec(image))
			if want.frontend == "" {
				if own, _ := errors.AsType[*fault.Error](err); own == nil || own.Reason != "POLICY_DENIED" {
					t.Errorf("%s by %s: %v, want it denied", image, form, err)
				}
			} else if err != nil || opt.Frontend != want.frontend || opt.FrontendAttrs["source"] != want.source {
				t.Errorf("%s by %s: frontend %q, source %q, %v", image, form, opt.Frontend, opt.FrontendAttrs["source"], err)
			}
			asked := Asked{Frontend: opt.Frontend, Attrs: opt.FrontendAttrs}
			if err == nil && asked.Allowed(policy.New(&configv1.BuildPolicyConfig{Frontends: []string{"registry.example/f:*"}})) != nil {
				t.Errorf("%s by %s: allowed when prepared, and denied when asked", image, form)
			}
		}
	}
}

// The daemon's frontend never follows a syntax line by itself: whom it names is
// asked for openly, is the daemon's own, or is denied.
func TestSyntaxLines(t *testing.T) {
	for name, tc := range map[string]struct {
		text, frontend, source string
		denied                 bool
	}{
		"none":            {text: "FROM a", frontend: "dockerfile.v0"},
		"granted":         {text: "# syntax=registry.example/f:1\nFROM a", frontend: "gateway.v0", source: "registry.example/f:1"},
		"official":        {text: "# syntax=docker/dockerfile:1\nFROM a", frontend: "dockerfile.v0"},
		"labs":            {text: "# syntax=docker/dockerfile:1-labs\nFROM a", frontend: "gateway.v0", source: "docker/dockerfile:1-labs"},
		"nightly":         {text: "# syntax=docker/dockerfile-upstream:master\nFROM a", denied: true},
		"foreign":         {text: "# syntax=evil/f:1\nFROM a", denied: true},
		"after a shebang": {text: "#!/usr/bin/env x\n# syntax=evil/f:1\nFROM a", denied: true},
		"as of C":         {text: "// syntax=evil/f:1\nFROM a", denied: true},
		"as JSON":         {text: `{"syntax": "evil/f:1"}`, denied: true},
		"too late":        {text: "FROM a\n# syntax=evil/f:1\n", frontend: "dockerfile.v0"},
	} {
		t.Run(name, func(t *testing.T) {
			opt, err := prepared(t, nil, inlineSpec(tc.text))
			var denied *fault.Error
			if errors.As(err, &denied) != tc.denied {
				t.Fatalf("err = %v", err)
			}
			if tc.denied {
				if denied.Reason != "POLICY_DENIED" || denied.Field != "spec.dockerfile" {
					t.Errorf("%+v", denied)
				}
				return
			}
			if _, told := opt.FrontendAttrs["cmdline"]; !told || opt.Frontend != tc.frontend || opt.FrontendAttrs["source"] != tc.source {
				t.Errorf("frontend %s, attributes %v", opt.Frontend, opt.FrontendAttrs)
			}
		})
	}
	// Of a repository nobody here knows the first line.
	opt, err := prepared(t, nil, build.Spec{Context: build.Context{Git: &build.GitContext{URL: "https://example.org/r.git"}}})
	if _, told := opt.FrontendAttrs["cmdline"]; err != nil || !told {
		t.Errorf("git: %v, %v", opt.FrontendAttrs, err)
	}
}

// A whole request in BuildKit's terms.
func TestFrontendAttributes(t *testing.T) {
	epoch := int64(7)
	spec := inlineSpec("FROM a")
	spec.Target, spec.BuildArgs, spec.Labels = "t", map[string]string{"A": "1"}, map[string]string{"l": "2"}
	spec.Platforms, spec.NoCacheStages, spec.Pull = []string{"linux/amd64", "linux/arm64"}, []string{"x", "y"}, true
	spec.ExtraHosts, spec.Network, spec.ShmSize = map[string]string{"b": "::1", "a": "1.2.3.4"}, "none", 99
	spec.Ulimits = []build.Ulimit{{Name: "nofile", Soft: 1, Hard: 2}, {Name: "core", Soft: -1, Hard: -1}}
	spec.Frontend.Attributes = map[string]string{"hostname": "h"}
	spec.Attestations = build.Attestations{Provenance: "max", SBOM: true}
	spec.SourceDateEpoch = &epoch
	opt, err := prepared(t, nil, spec)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"target": "t", "build-arg:A": "1", "label:l": "2", "platform": "linux/amd64,linux/arm64", "no-cache": "x,y", "image-resolve-mode": "pull",
		"add-hosts": "a=1.2.3.4,b=::1", "force-network-mode": "none", "shm-size": "99", "ulimit": "nofile=1:2,core=-1:-1", "hostname": "h",
		"attest:provenance": "mode=max", "attest:sbom": "generator=registry.example/scan:1", "build-arg:SOURCE_DATE_EPOCH": "7",
		"dockerfilekey": "dockerfile", "cmdline": "",
	}
	if diff := gocmp.Diff(want, opt.FrontendAttrs); diff != "" {
		t.Error(diff)
	}
}

// All pushes of one compression are one exporter, and the last exporters are
// pushes: the daemon answers with what the last one says of an image.
func TestExporters(t *testing.T) {
	spec := inlineSpec("FROM a")
	push := func(compression string, tags ...string) build.Output {
		return build.Output{Registry: &build.RegistryOutput{Tags: tags, Compression: compression}}
	}
	spec.Annotations = map[string]string{"k": "v"}
	spec.Outputs = []build.Output{
		push("", "a:1"), {Archive: &build.ArchiveOutput{Artifact: "d.tar", Tags: []string{"d:1"}}}, push("zstd", "z:1"), push("", "a:2"),
		{Local: &build.LocalOutput{Artifact: "f.tar"}}, {Archive: &build.ArchiveOutput{OCI: true, Artifact: "o.tar"}},
	}
	opt, err := prepared(t, nil, spec)
	if err != nil {
		t.Fatal(err)
	}
	type export struct {
		Type  string
		Attrs map[string]string
		Sends bool
	}
	var got []export
	for _, e := range opt.Exports {
		got = append(got, export{e.Type, e.Attrs, e.Output != nil})
	}
	want := []export{
		{"docker", map[string]string{"name": "d:1", "annotation.k": "v", "compression": "gzip", "force-compression": "true"}, true},
		{"tar", map[string]string{}, true},
		{"oci", map[string]string{"annotation.k": "v", "compression": "gzip", "force-compression": "true"}, true},
		{"image", map[string]string{"name": "a:1,a:2", "push": "true", "annotation.k": "v", "compression": "gzip", "force-compression": "true"}, false},
		{"image", map[string]string{"name": "z:1", "push": "true", "annotation.k": "v", "compression": "zstd", "force-compression": "true"}, false},
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A local cache is the directory that was opened, wherever its path leads later;
// the spec, which may be used again, stays as it is.
func TestLocalCacheIsHeldOpen(t *testing.T) {
	root := t.TempDir()
	spec := inlineSpec("FROM a")
	dest := filepath.Join(root, "new", "cache")
	spec.Cache.Exports = []build.CacheEntry{{Type: "local", Attributes: map[string]string{"dest": dest}}}
	if _, err := prepared(t, hostdir.Roots{root}, spec); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dest); err != nil || !info.IsDir() {
		t.Errorf("%v, %v", info, err)
	}
	if spec.Cache.Exports[0].Attributes["dest"] != dest {
		t.Error("the spec was changed")
	}
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(root, "out")); err != nil {
		t.Fatal(err)
	}
	for name, dest := range map[string]string{"outside": outside, "by a link": filepath.Join(root, "out", "x"), "by ..": root + "/../x"} {
		spec.Cache.Exports[0].Attributes["dest"] = dest
		var denied *fault.Error
		if _, err := prepared(t, hostdir.Roots{root}, spec); !errors.As(err, &denied) || denied.Reason != "DIRECTORY_NOT_ALLOWED" ||
			denied.Field != `spec.cache.exports[0].attributes["dest"]` {
			t.Errorf("%s: %v", name, err)
		}
		if left, _ := os.ReadDir(outside); len(left) > 0 {
			t.Errorf("%s: %v was made outside", name, left)
		}
	}
	spec.Cache.Exports = []build.CacheEntry{{Type: "s3", Attributes: map[string]string{"endpoint_url": "http://169.254.169.254/"}}}
	var denied *fault.Error
	if _, err := prepared(t, nil, spec); !errors.As(err, &denied) || denied.Reason != "POLICY_DENIED" {
		t.Errorf("an object store at a metadata address: %v", err)
	}
}

// What a request opens is closed again when it is refused.
func TestRefusedRequestsLeaveNothingOpen(t *testing.T) {
	root := t.TempDir()
	spec := build.Spec{
		Context:       build.Context{Directory: &build.DirectoryContext{Path: root}},
		NamedContexts: map[string]build.Context{"z": {Directory: &build.DirectoryContext{Path: "/"}}},
	}
	before := descriptors(t)
	for range 20 {
		if _, err := prepared(t, hostdir.Roots{root}, spec); err == nil {
			t.Fatal("it was accepted")
		}
	}
	if after := descriptors(t); after > before+2 {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

// Secrets do not go to a daemon over a network in plain text.
func TestSecretsNeedASecureDaemon(t *testing.T) {
	spec := inlineSpec("FROM a")
	spec.Secrets = []build.Secret{{ID: "tok", Value: []byte("secret")}}
	for address, plain := range map[string]bool{
		"unix:///run/buildkit/buildkitd.sock": false, "tcp://127.0.0.1:1234": false, "tcp://10.0.0.7:1234": true, "tcp://buildkitd.example:1234": true,
	} {
		d, err := Dial(t.Context(), &configv1.DaemonConfig{Name: "d", Address: address}, Options{}, telemetry.Discard())
		if err != nil {
			t.Fatal(err)
		}
		j := &job{daemon: d, spec: spec}
		err = j.addSession()
		if known, ok := errors.AsType[*fault.Error](err); ok != plain || (plain && known.Reason != "INSECURE_TRANSPORT") {
			t.Errorf("%s: %v", address, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}
