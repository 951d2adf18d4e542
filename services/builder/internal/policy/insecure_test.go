package policy_test

import (
	"errors"
	"testing"

	"github.com/kilnbuild/kiln/pkg/fault"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/policy"
)

func TestInsecure_IsForListedRegistriesAndLoopback(t *testing.T) {
	listed := policy.New(&configv1.BuildPolicyConfig{InsecureRegistries: []string{"registry.internal:5000", "10.1.*"}})
	all := policy.New(&configv1.BuildPolicyConfig{InsecureRegistries: []string{"*"}})
	for _, test := range []struct {
		policy *policy.Policy
		host   string
		want   bool
	}{
		{nil, "registry.internal:5000", false}, {nil, "localhost:5000", true}, {nil, "127.0.0.2:5000", true}, {nil, "[::1]:5000", true},
		{nil, "localhost.example.org", false}, {nil, "127.example.org:5000", false}, {nil, "", false},
		{listed, "registry.internal:5000", true}, {listed, "Registry.Internal:5000", true}, {listed, "10.1.2.3:80", true},
		{listed, "registry.internal", false}, {listed, "registry.internal:5001", false}, {listed, "docker.io", false}, {listed, "", false},
		{all, "docker.io", true}, {all, "", true},
	} {
		err := test.policy.Insecure(test.host)
		own, ok := errors.AsType[*fault.Error](err)
		if (err == nil) != test.want || err != nil && (!ok || own.Reason != "POLICY_DENIED" || own.Remedy == "") {
			t.Errorf("%q: %v, granted should be %v", test.host, err, test.want)
		}
	}
}
