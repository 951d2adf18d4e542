package up

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestAddresses(t *testing.T) {
	usual := addresses{
		builder: "127.0.0.1:50051", builderHTTP: "127.0.0.1:9461",
		cacheManager: "127.0.0.1:50052", cacheManagerHTTP: "127.0.0.1:9462",
		janitor: "127.0.0.1:50053", janitorHTTP: "127.0.0.1:9463",
		registry: "127.0.0.1:5000", egress: "127.0.0.1:50054",
	}
	based := addresses{
		builder: "127.0.0.1:7000", builderHTTP: "127.0.0.1:7010",
		cacheManager: "127.0.0.1:7001", cacheManagerHTTP: "127.0.0.1:7011",
		janitor: "127.0.0.1:7002", janitorHTTP: "127.0.0.1:7012",
		registry: "127.0.0.1:7020", egress: "127.0.0.1:7003",
	}
	elsewhere := usual
	elsewhere.registry = "[::1]:5001"
	tests := map[string]struct {
		opts Options
		want addresses
		name string
	}{
		"usual":       {Options{}, usual, "localhost:5000"},
		"base":        {Options{ListenBase: 7000}, based, "localhost:7020"},
		"registry":    {Options{RegistryListen: "[::1]:5001"}, elsewhere, "[::1]:5001"},
		"by its name": {Options{RegistryListen: "localhost:5000"}, usual, "localhost:5000"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := test.opts.addresses()
			if err != nil || got != test.want {
				t.Errorf("got %+v, %v", got, err)
			}
			if got.registryName() != test.name {
				t.Errorf("registry name = %q, want %q", got.registryName(), test.name)
			}
		})
	}
	for _, bad := range []Options{
		{ListenBase: -1}, {ListenBase: 65516},
		{RegistryListen: "0.0.0.0:5000"}, {RegistryListen: "registry.example.org:5000"}, {RegistryListen: "127.0.0.1"},
		{RegistryListen: "127.0.0.1:0"}, {RegistryListen: ":5000"},
	} {
		if got, err := bad.addresses(); err == nil {
			t.Errorf("%+v gives %+v", bad, got)
		}
	}
}

func TestDataDirs(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", "/state")
	if dir, err := DefaultDataDir(); err != nil || dir != "/state/kiln" {
		t.Errorf("got %q, %v", dir, err)
	}
	t.Setenv("XDG_STATE_HOME", "relative") // The XDG rules: such a value is to be ignored.
	t.Setenv("HOME", "/home/somebody")
	want := "/home/somebody/.local/state/kiln"
	if os.Geteuid() == 0 {
		want = "/var/lib/kiln"
	}
	if dir, err := DefaultDataDir(); err != nil || dir != want {
		t.Errorf("got %q, %v", dir, err)
	}
}

func TestComplete(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	opts, err := Options{DataDir: "state"}.complete()
	if err != nil {
		t.Fatal(err)
	}
	if opts.DataDir != filepath.Join(dir, "state") || !slices.Equal(opts.AllowRoots, []string{dir}) || opts.StartTimeout != defaultStartTimeout {
		t.Errorf("got %+v", opts)
	}
	for _, root := range []string{"missing", "file"} {
		if err := os.WriteFile("file", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := (Options{DataDir: "state", AllowRoots: []string{root}}).complete(); err == nil || !strings.Contains(err.Error(), root) {
			t.Errorf("root %s: err = %v", root, err)
		}
	}
}

func TestSocketDir(t *testing.T) {
	if got := socketDir("/var/lib/kiln", "/run"); got != "/var/lib/kiln" {
		t.Errorf("short: %q", got)
	}
	long, other := "/"+strings.Repeat("x", 90), "/"+strings.Repeat("y", 90)
	got := socketDir(long, "/run")
	if !strings.HasPrefix(got, "/run/kiln-") || len(got) > 30 || got != socketDir(long, "/run") || got == socketDir(other, "/run") {
		t.Errorf("long: %q", got)
	}
}
