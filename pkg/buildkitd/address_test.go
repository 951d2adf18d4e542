package buildkitd

import (
	"errors"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// The forms that BuildKit's clients, connection helpers and daemon know, and what becomes of each.
func TestParseAddress(t *testing.T) {
	tests := []struct {
		text, want string
		local      bool
		refusal    string // part of the message of an address that is refused
	}{
		{text: "unix:///run/buildkit/buildkitd.sock", want: "unix:///run/buildkit/buildkitd.sock", local: true},
		{text: "tcp://127.0.0.1:1234", want: "tcp://127.0.0.1:1234", local: true},
		{text: "tcp://localhost:1234", want: "tcp://localhost:1234", local: true},
		{text: "tcp://[::1]:1234", want: "tcp://[::1]:1234", local: true},
		{text: "TCP://builds.example.org:8372/", want: "tcp://builds.example.org:8372"},
		{text: "tcp://10.0.0.1:1234", want: "tcp://10.0.0.1:1234"},

		{text: "", refusal: "no address"},
		{text: "127.0.0.1:1234", refusal: "no scheme"},
		{text: "/run/buildkit/buildkitd.sock", refusal: "no scheme"},
		{text: "unix://relative.sock", refusal: "not absolute"},
		{text: "unix://", refusal: "not absolute"},
		{text: "unix:///" + strings.Repeat("x", 200), refusal: "Linux allows 107"},
		{text: "tcp://host", refusal: "no port"},
		{text: "tcp://:1234", refusal: "no host"},
		{text: "tcp://host:0", refusal: "from 1 to 65535"},
		{text: "tcp://host:65536", refusal: "from 1 to 65535"},
		{text: "tcp://user@host:1234", refusal: "more than a host and a port"},
		{text: "tcp://host:1234/path", refusal: "more than a host and a port"},
		{text: "tcp://host:1234?x=y", refusal: "more than a host and a port"},
		{text: "tcp://::1:1234", refusal: "too many colons"},
		{text: "docker-container://buildkit", refusal: "docker exec"},
		{text: "podman-container://buildkit", refusal: "podman exec"},
		{text: "nerdctl-container://buildkit", refusal: "nerdctl exec"},
		{text: "kube-pod://buildkit?namespace=ci", refusal: "kubectl exec"},
		{text: "ssh://user@host", refusal: "ssh"},
		{text: "npipe:////./pipe/buildkitd", refusal: "Windows"},
		{text: "fd://buildkitd.socket", refusal: "file descriptor"},
		{text: "https://host:1234", refusal: "tcp://"},
		{text: "dns:///host:1234", refusal: "unknown scheme"},
		{text: "passthrough:///host:1234", refusal: "unknown scheme"},
	}
	for _, test := range tests {
		t.Run(test.text, func(t *testing.T) {
			address, err := ParseAddress(test.text)
			if test.refusal == "" {
				if err != nil || address.String() != test.want || address.Local() != test.local {
					t.Errorf("ParseAddress = %s, local %t, %v", address, address.Local(), err)
				}
				return
			}
			var refused *fault.Error
			if !errors.As(err, &refused) || refused.Kind != fault.InvalidArgument || refused.Remedy == "" ||
				!strings.Contains(refused.Message, test.refusal) {
				t.Errorf("ParseAddress = %s, %v; want a refusal that says %q, with a remedy", address, err, test.refusal)
			}
		})
	}
}
