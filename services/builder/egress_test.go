package builder

import (
	"errors"
	"testing"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

func TestEgressAddress(t *testing.T) {
	for name, test := range map[string]struct {
		listen   string
		insecure bool
		bound    bool
		refused  bool
	}{
		"unset":          {"", false, false, false},
		"off":            {"off", false, false, false},
		"loopback":       {"127.0.0.1:0", false, true, false},
		"open":           {"0.0.0.0:0", false, false, true},
		"open, insecure": {"0.0.0.0:0", true, true, false},
		"no port":        {"127.0.0.1", false, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Complete(&configv1.BuilderConfig{
				Egress: &configv1.EgressConfig{Listen: test.listen}, Server: &configv1.ServerConfig{Insecure: test.insecure},
			})
			listener, err := listenEgress(t.Context(), cfg)
			if listener != nil {
				defer listener.Close()
			}
			if (listener != nil) != test.bound || (err != nil) != test.refused {
				t.Errorf("%v, %v", listener, err)
			}
			if f, ok := errors.AsType[*fault.Error](err); err != nil && (!ok || f.Field != "egress.listen" || f.Remedy == "") {
				t.Errorf("error %#v", err)
			}
		})
	}
}

func TestNetworksThatAreNone(t *testing.T) {
	tel, err := telemetry.Setup(t.Context(), telemetry.Options{Service: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tel.Shutdown(t.Context()) }()
	if _, err := newGuard(&configv1.SourcesConfig{Networks: []string{"10.0.0.0/8", "fd00:1::/64"}}, tel); err != nil {
		t.Error(err)
	}
	for _, text := range []string{"10.0.0.1", "10.0.0.0/33", "example.org", ""} {
		_, err := newGuard(&configv1.SourcesConfig{Networks: []string{"10.0.0.0/8", text}}, tel)
		if f, ok := errors.AsType[*fault.Error](err); !ok || f.Field != "policy.sources.networks[1]" {
			t.Errorf("%q: %v", text, err)
		}
	}
}
