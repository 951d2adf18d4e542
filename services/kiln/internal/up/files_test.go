package up

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

// The files as the daemons get them; UPDATE_GOLDEN=1 writes them anew.
func TestConfigFiles(t *testing.T) {
	odd := `/srv/a "b" \c`
	tests := map[string]struct {
		text   string
		values any
	}{
		"buildkitd.toml": {buildkitdText, buildkitdFile{
			Root: "/var/lib/kiln/buildkit", Address: "unix:///var/lib/kiln/buildkitd.sock",
			TraceSocket: "/var/lib/kiln/otel-grpc.sock", Registries: []string{"localhost:5000", "127.0.0.1:5000"},
		}},
		"buildkitd-odd.toml": {buildkitdText, buildkitdFile{
			Root: odd, Address: "unix://" + odd, TraceSocket: odd, Registries: []string{"[::1]:5000"},
		}},
		"buildkitd-steps.toml": {buildkitdText, buildkitdFile{
			Root: "/var/lib/kiln/buildkit", Address: "unix:///var/lib/kiln/buildkitd.sock",
			TraceSocket: "/var/lib/kiln/otel-grpc.sock", Registries: []string{"localhost:5000"},
			Steps: &stepsFile{
				CNIConfig: odd + "/cni.conflist", CNIPlugins: "/usr/lib/cni", PoolSize: 8,
				Nameservers: []netip.Addr{netip.MustParseAddr("10.213.0.1"), netip.MustParseAddr("10.20.0.2")},
			},
		}},
		"registry.yml":     {registryText, registryFile{Root: "/var/lib/kiln/registry", Listen: "127.0.0.1:5000", Events: "http://127.0.0.1:9463/registry-events", Secret: "s3cret"}},
		"registry-odd.yml": {registryText, registryFile{Root: odd, Listen: "[::1]:5000"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := render(test.text, test.values)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name)
			if os.Getenv("UPDATE_GOLDEN") != "" {
				if err := os.WriteFile(golden, got, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}
