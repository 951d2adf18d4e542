package config_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/pkg/config"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// defaults is a configuration that Load goes over.
func defaults() *configv1.BuilderConfig {
	return &configv1.BuilderConfig{
		Server:          &configv1.ServerConfig{Listen: "127.0.0.1:50051", HttpListen: "127.0.0.1:9461"},
		Daemons:         []*configv1.DaemonConfig{{Name: "default", Address: "unix:///run/buildkit/buildkitd.sock"}},
		AllowedRoots:    []string{"/src"},
		MaxBuildTime:    durationpb.New(3661500 * time.Millisecond),
		MaxBuildsKept:   1000,
		CacheRepository: "localhost:5000/cache",
	}
}

func file(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kiln.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoad(t *testing.T) {
	for name, test := range map[string]struct {
		file string
		env  []string
		set  []string
		edit func(*configv1.BuilderConfig)
	}{
		"nothing":       {},
		"empty file":    {file: "\n"},
		"comments only": {file: "# nothing yet\n"},
		"empty section": {file: "server:\nlog:\n", edit: func(c *configv1.BuilderConfig) {}},
		"file": {
			file: "server:\n  listen: unix:///run/kiln.sock\n  limits: {unary_timeout: 1.5s, max_message_bytes: 1024}\nmax_builds_kept: 5\n",
			edit: func(c *configv1.BuilderConfig) {
				c.Server.Listen = "unix:///run/kiln.sock"
				c.Server.Limits = &configv1.LimitsConfig{UnaryTimeout: durationpb.New(1500 * time.Millisecond), MaxMessageBytes: 1024}
				c.MaxBuildsKept = 5
			},
		},
		"lower camel case":           {file: "cacheRepository: r/c\n", edit: func(c *configv1.BuilderConfig) { c.CacheRepository = "r/c" }},
		"Windows lines":              {file: "server:\r\n  listen: a:1\r\ncache_repository: r/c\r\n", edit: func(c *configv1.BuilderConfig) { c.Server.Listen, c.CacheRepository = "a:1", "r/c" }},
		"a default to zero":          {file: "max_builds_kept: 0\n", edit: func(c *configv1.BuilderConfig) { c.MaxBuildsKept = 0 }},
		"a duration loses its parts": {file: "max_build_time: 2h\n", edit: func(c *configv1.BuilderConfig) { c.MaxBuildTime = durationpb.New(2 * time.Hour) }},
		"lists are replaced": {
			file: "daemons:\n  - {name: other, address: 'tcp://h:1'}\nallowed_roots: [/a, /b]\n",
			edit: func(c *configv1.BuilderConfig) {
				c.Daemons = []*configv1.DaemonConfig{{Name: "other", Address: "tcp://h:1"}}
				c.AllowedRoots = []string{"/a", "/b"}
			},
		},
		"a list is emptied": {file: "allowed_roots: []\n", edit: func(c *configv1.BuilderConfig) { c.AllowedRoots = nil }},
		"environment": {
			env: []string{
				"KILN_BUILDER_SERVER_LISTEN=h:1", "KILN_BUILDER_SERVER_INSECURE=true", "KILN_BUILDER_MAX_BUILD_TIME=90m",
				"KILN_BUILDER_ALLOWED_ROOTS=/a, /b", "KILN_BUILDER_DAEMONS=[{address: 'tcp://h:2'}]", "KILN_BUILDER_MAX_BUILDS_KEPT=7",
				"KILN_BUILDER_CACHE_REPOSITORY=a: [b", "KILN_BUILDER=not:ours", "KILN_CACHEMANAGER_KEEP_AGE=not ours", "PATH=/bin", "ODD",
			},
			edit: func(c *configv1.BuilderConfig) {
				c.Server.Listen, c.Server.Insecure, c.MaxBuildTime = "h:1", true, durationpb.New(90*time.Minute)
				c.AllowedRoots, c.Daemons, c.MaxBuildsKept = []string{"/a", "/b"}, []*configv1.DaemonConfig{{Address: "tcp://h:2"}}, 7
				c.CacheRepository = "a: [b"
			},
		},
		"links of services": {env: []string{
			"KILN_BUILDER_SERVICE_HOST=10.0.0.1", "KILN_BUILDER_SERVICE_PORT=50051", "KILN_BUILDER_SERVICE_PORT_GRPC=50051", "KILN_BUILDER_PORT=tcp://10.0.0.1:50051",
			"KILN_BUILDER_PORT_50051_TCP=tcp://10.0.0.1:50051", "KILN_BUILDER_PORT_50051_TCP_PROTO=tcp", "KILN_BUILDER_PORT_50051_TCP_ADDR=10.0.0.1",
		}},
		"set": {
			set: []string{"server.listen=a:1", "server.listen=b:2", "allowed_roots=", "log.level=debug", "server.limits.shutdown_grace=0s"},
			edit: func(c *configv1.BuilderConfig) {
				c.Server.Listen, c.AllowedRoots, c.Log = "b:2", nil, &configv1.LogConfig{Level: "debug"}
				c.Server.Limits = &configv1.LimitsConfig{ShutdownGrace: &durationpb.Duration{}}
			},
		},
		"order": {
			file: "cache_repository: file/f\nserver: {listen: 'file:1', http_listen: 'file:2'}\n",
			env:  []string{"KILN_BUILDER_CACHE_REPOSITORY=env/e", "KILN_BUILDER_SERVER_LISTEN=env:1"},
			set:  []string{"cache_repository=set/s"},
			edit: func(c *configv1.BuilderConfig) {
				c.CacheRepository, c.Server.Listen, c.Server.HttpListen = "set/s", "env:1", "file:2"
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			opts := config.Options{EnvPrefix: "KILN_BUILDER", Environ: test.env, Set: test.set}
			if test.file != "" {
				opts.File = file(t, test.file)
			}
			want := defaults()
			if test.edit != nil {
				test.edit(want)
			}
			got := defaults()
			if err := config.Load(got, opts); err != nil {
				t.Fatalf("Load: %v", err)
			}
			if name == "empty section" {
				got.Log = nil // There and empty.
			}
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		file string
		env  []string
		set  []string
		want []string // FILE stands for the path.
	}{
		"unknown key":           {file: "server:\n  lisen: a:1\n", want: []string{`FILE:2:3: unknown field "lisen"`, "listen"}},
		"unknown section":       {file: "sever: {}\n", want: []string{`FILE:1:1: unknown field "sever"`}},
		"wrong type":            {file: "max_builds_kept: many\n", want: []string{"FILE:1:18: "}},
		"out of range":          {file: "\nmax_builds_kept: 1000001\n", want: []string{"FILE:2:18: max_builds_kept: must be less than or equal to 1000000"}},
		"list item":             {file: "allowed_roots:\n  - /ok\n  - relative\n", want: []string{"FILE:3:5: allowed_roots[1]: "}},
		"in a list of messages": {file: "daemons:\n  - name: a\n    address: ftp://x\n", want: []string{"FILE:3:14: daemons[0].address: "}},
		"twice":                 {file: "log: {level: info}\nlog: {level: debug}\n", want: []string{"FILE:2:1: log is there twice"}},
		"twice by two names":    {file: "cache_repository: a\ncacheRepository: b\n", want: []string{"FILE:2:1: cache_repository is there twice"}},
		"field number":          {file: "1: {}\n", want: []string{`FILE:1:1: unknown field "1"`}},
		"no value":              {file: "server:\n  listen:\n", want: []string{"FILE:2:10: server.listen has no value"}},
		"no mapping":            {file: "just text\n", want: []string{"FILE:1:1: "}},
		"no YAML":               {file: "server: [\n", want: []string{"FILE: "}},
		"two documents":         {file: "log: {}\n---\nlog: {}\n", want: []string{"more than one YAML document"}},
		"an alias":              {file: "log: &l {level: info}\nserver: *l\n", want: []string{"FILE:2:9: "}},
		"several at once":       {file: "a: 1\nb: 2\n", want: []string{`FILE:1:1: unknown field "a"`, `FILE:2:1: unknown field "b"`, "; "}},
		"variable unknown":      {env: []string{"KILN_BUILDER_SERVER_LISEN=a:1"}, want: []string{"KILN_BUILDER_SERVER_LISEN: this variable names no setting"}},
		"variable of a section": {env: []string{"KILN_BUILDER_SERVER={}"}, want: []string{"KILN_BUILDER_SERVER: this variable names no setting"}},
		"variable, wrong":       {env: []string{"KILN_BUILDER_MAX_BUILDS_KEPT=many"}, want: []string{"KILN_BUILDER_MAX_BUILDS_KEPT: "}},
		"variable, empty":       {env: []string{"KILN_BUILDER_MAX_BUILDS_KEPT="}, want: []string{"KILN_BUILDER_MAX_BUILDS_KEPT: max_builds_kept has no value"}},
		"variable, rule":        {env: []string{"KILN_BUILDER_LOG_LEVEL=loud"}, want: []string{"KILN_BUILDER_LOG_LEVEL: log.level: "}},
		"variable, no YAML":     {env: []string{"KILN_BUILDER_DAEMONS=[{"}, want: []string{"KILN_BUILDER_DAEMONS: "}},
		"set, rule":             {set: []string{"max_build_time=0s"}, want: []string{"--set max_build_time: max_build_time: must be greater than 0s"}},
		"set, no path":          {set: []string{"server"}, want: []string{"--set server: write it as path=value"}},
		"set, unknown":          {set: []string{"server.lisen=x"}, want: []string{`there is no setting "server.lisen"`}},
		"the last one is to blame": {
			file: "max_builds_kept: 1000001\n", env: []string{"KILN_BUILDER_MAX_BUILDS_KEPT=1000002"}, want: []string{"KILN_BUILDER_MAX_BUILDS_KEPT: max_builds_kept: "},
		},
	} {
		t.Run(name, func(t *testing.T) {
			opts := config.Options{EnvPrefix: "KILN_BUILDER", Environ: test.env, Set: test.set}
			if test.file != "" {
				opts.File = file(t, test.file)
			}
			err := config.Load(defaults(), opts)
			if err == nil {
				t.Fatal("Load took it")
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has several lines: %q", err)
			}
			for _, want := range test.want {
				if want = strings.ReplaceAll(want, "FILE", opts.File); !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
		})
	}
}

func TestLoadOfFiles(t *testing.T) {
	if err := config.Load(defaults(), config.Options{File: "/nothing/here.yaml"}); err == nil || !strings.Contains(err.Error(), "/nothing/here.yaml") {
		t.Errorf("a missing file: %v", err)
	}
	if err := config.Load(defaults(), config.Options{File: "/dev/zero"}); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a file without an end: %v", err)
	}
}

// A default that breaks a rule is named by its path.
func TestLoadOfWrongDefaults(t *testing.T) {
	err := config.Load(&configv1.BuilderConfig{MaxBuildsKept: 1000001}, config.Options{})
	if err == nil || !strings.HasPrefix(err.Error(), "max_builds_kept: must be") {
		t.Errorf("error: %v", err)
	}
}

// What replaces a member of a oneof clears the others.
func TestLoadOfOneof(t *testing.T) {
	msg := &builderv1.Dockerfile{Source: &builderv1.Dockerfile_Path{Path: "Dockerfile"}}
	if err := config.Load(msg, config.Options{File: file(t, "path: Other\n"), Set: []string{"inline=FROM scratch"}}); err != nil {
		t.Fatal(err)
	}
	if msg.GetInline() != "FROM scratch" || msg.GetPath() != "" {
		t.Errorf("got %v", msg)
	}
}

func TestPrint(t *testing.T) {
	want := defaults()
	want.Server.Access = []*configv1.AccessRule{{Identities: []string{"*"}, Methods: []string{"*"}}}
	var out bytes.Buffer
	if err := config.Print(&out, want); err != nil {
		t.Fatal(err)
	}
	got := &configv1.BuilderConfig{}
	if err := config.Load(got, config.Options{File: file(t, out.String())}); err != nil {
		t.Fatalf("what was printed does not load: %v\n%s", err, out.String())
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if !strings.Contains(out.String(), "http_listen: 127.0.0.1:9461") {
		t.Errorf("names are not those of the file:\n%s", out.String())
	}
}

// What is printed reads as people write it: 48h, and not 172800s.
func TestPrint_WritesDurationsAsPeopleDo(t *testing.T) {
	for _, text := range []string{"48h", "1h30m", "1m30s", "10m", "500ms", "1s", "168h"} {
		msg := &configv1.BuilderConfig{}
		if err := config.Load(msg, config.Options{File: file(t, "max_build_time: "+text+"\n")}); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := config.Print(&out, msg); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), "max_build_time: "+text+"\n") {
			t.Errorf("%s is printed as %s", text, out.String())
		}
	}
	policy := &cachemanagerv1.Policy{Rules: []*cachemanagerv1.Rule{{Name: "age", Keep: &cachemanagerv1.Keep{Age: durationpb.New(48 * time.Hour)}}}}
	var out bytes.Buffer
	if err := config.Print(&out, policy); err != nil || !strings.Contains(out.String(), "age: 48h\n") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

func TestPrintRedacts(t *testing.T) {
	msg := &builderv1.BuildSpec{Project: "web", Secrets: []*builderv1.Secret{{Id: "token", Value: []byte("hunter2")}}}
	before := proto.Clone(msg)
	var out bytes.Buffer
	if err := config.Print(&out, msg); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "token") || strings.Contains(out.String(), "value") {
		t.Errorf("printed:\n%s", out.String())
	}
	if !proto.Equal(before, msg) {
		t.Error("the message itself was changed")
	}
}

// FuzzLoad: no input makes Load panic, and what it takes obeys the rules,
// survives Print, and loads again to the same.
func FuzzLoad(f *testing.F) {
	for _, seed := range []string{
		"", "server:\n  listen: a:1\n", "daemons: [{name: a, address: 'unix:///x'}]\n", "max_build_time: 1h30m\n", "a: &a [*a]\n", "log: {level: \"\u2028x\"}\r\n",
		"server: {access: [{identities: ['*'], methods: ['*']}]}", "? [a]\n: b", "--- |\n x\n...\n", "max_builds_kept: 0x10\n", "server: !!binary aGk=", "\x85log: 1", "{,}", "1: 2",
	} {
		f.Add(seed, seed)
	}
	f.Fuzz(func(t *testing.T, text, value string) {
		path := file(t, text)
		msg := defaults()
		err := config.Load(msg, config.Options{File: path, EnvPrefix: "K", Environ: []string{"K_DAEMONS=" + value}, Set: []string{"allowed_roots=" + value}})
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := config.Print(&out, msg); err != nil {
			t.Fatalf("Print: %v", err)
		}
		again := &configv1.BuilderConfig{}
		if err := config.Load(again, config.Options{File: file(t, out.String())}); err != nil {
			t.Fatalf("what was printed does not load: %v\n%s", err, out.String())
		}
		if diff := cmp.Diff(msg, again, protocmp.Transform()); diff != "" {
			t.Fatalf("-first +again:\n%s", diff)
		}
	})
}
