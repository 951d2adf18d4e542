package up

import (
	"slices"
	"testing"
)

func TestProxyEnv(t *testing.T) {
	addrs, err := Options{}.addresses()
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		environ []string
		direct  string // "": no proxy is set
	}{
		"none":      {[]string{"PATH=/bin", "HTTPS_PROXY="}, "localhost:5000,127.0.0.1:5000"},
		"more":      {[]string{"no_proxy=.corp", "OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317"}, "localhost:5000,127.0.0.1:5000,.corp,collector"},
		"their own": {[]string{"https_proxy=http://proxy:3128"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := proxyEnv(test.environ, addrs)
			if test.direct == "" {
				if got != nil {
					t.Errorf("got %q", got)
				}
				return
			}
			for _, want := range []string{"HTTP_PROXY=http://127.0.0.1:50054", "https_proxy=http://127.0.0.1:50054", "NO_PROXY=" + test.direct, "no_proxy=" + test.direct} {
				if !slices.Contains(got, want) {
					t.Errorf("%q lacks %q", got, want)
				}
			}
		})
	}
}
