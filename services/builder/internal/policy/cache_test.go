package policy_test

import (
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/pkg/fault"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/policy"
)

func TestCache_DeniesObjectStoresThatAreNotListed(t *testing.T) {
	listed := policy.New(&configv1.BuildPolicyConfig{ObjectCaches: []*configv1.ObjectCache{
		{Type: "s3", Buckets: []string{"ci-cache", "team-*"}},
		{Type: "s3", Endpoints: []string{"https://minio.example:9000"}},
		{Type: "azblob", Buckets: []string{"cache"}, Endpoints: []string{"https://acct.blob.core.windows.net"}},
		{Type: "gha", Endpoints: []string{"https://actions.example/cache"}},
		{Type: "s3"},
	}})
	type attrs = map[string]string
	for name, test := range map[string]struct {
		kind  string
		attrs attrs
		ok    bool
	}{
		"a registry":                 {"registry", attrs{"ref": "a"}, true},
		"a directory":                {"local", nil, true},
		"the image":                  {"inline", nil, true},
		"a listed bucket":            {"s3", attrs{"bucket": "ci-cache", "region": "eu-west-1"}, true},
		"by a wildcard":              {"s3", attrs{"bucket": "team-a", "region": "eu-west-1"}, true},
		"another bucket":             {"s3", attrs{"bucket": "payroll", "region": "eu-west-1"}, false},
		"the daemon's own bucket":    {"s3", attrs{"region": "eu-west-1"}, false},
		"the daemon's own region":    {"s3", attrs{"bucket": "ci-cache"}, false},
		"a host in the region":       {"s3", attrs{"bucket": "ci-cache", "region": "x.attacker.example/#"}, false},
		"a host in the bucket":       {"s3", attrs{"bucket": "team-a.attacker.example/", "region": "eu-west-1"}, false},
		"a listed bucket elsewhere":  {"s3", attrs{"bucket": "ci-cache", "region": "r", "endpoint_url": "http://169.254.169.254/"}, false},
		"a listed endpoint":          {"s3", attrs{"bucket": "any", "region": "r", "endpoint_url": "https://minio.example:9000/"}, true},
		"a listed endpoint in plain": {"s3", attrs{"bucket": "any", "region": "r", "endpoint_url": "http://minio.example:9000/"}, false},
		"a user before the host":     {"s3", attrs{"bucket": "any", "region": "r", "endpoint_url": "https://minio.example:9000@attacker.example/"}, false},
		"a container":                {"azblob", attrs{"container": "cache", "account_url": "https://acct.blob.core.windows.net/"}, true},
		"the daemon's own container": {"azblob", attrs{"account_url": "https://acct.blob.core.windows.net/"}, false},
		"another account":            {"azblob", attrs{"container": "cache", "account_url": "https://attacker.example/"}, false},
		"the metadata service":       {"azblob", attrs{"container": "cache", "account_url": "http://169.254.169.254/"}, false},
		"below a path":               {"gha", attrs{"url_v2": "https://actions.example/cache/x/"}, true},
		"beside a path":              {"gha", attrs{"url": "https://actions.example/cached"}, false},
		"out of a path":              {"gha", attrs{"url": "https://actions.example/cache/../admin"}, false},
		"one of two URLs":            {"gha", attrs{"url": "https://actions.example/cache", "url_v2": "http://10.0.0.1/"}, false},
		"no URL":                     {"gha", nil, false},
		"a type that is not known":   {"webdav", attrs{"url": "https://actions.example/cache"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := listed.Cache(test.kind, test.attrs)
			if (err == nil) != test.ok || err != nil && fault.KindOf(err) != fault.PermissionDenied {
				t.Errorf("%v, allowed should be %v", err, test.ok)
			}
		})
	}
	for _, kind := range []string{"s3", "azblob", "gha"} {
		if policy.New(nil).Cache(kind, attrs{"bucket": "b", "region": "r"}) == nil {
			t.Errorf("%s is on though the operator lists nothing", kind)
		}
	}
}

// A typing error is told as one, not as something that the operator could grant.
func TestCache_NamesTheTypesOfCachesThatThereAre(t *testing.T) {
	err := policy.New(nil).Cache("regstry", nil)
	if err == nil || !strings.Contains(err.Error(), `unknown cache type "regstry"`) {
		t.Error(err)
	}
}
