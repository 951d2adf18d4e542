package up

import (
	"net/url"
	"slices"
	"strings"
)

// proxyEnv makes buildkitd fetch through the builder's egress proxy: images, files
// and git repositories over HTTP, but for the registry here and the collector of its
// spans. A user who has a proxy is left with it: that one is the way out, by rules of
// its own.
func proxyEnv(environ []string, addrs addresses) []string {
	direct := addrs.registryNames()
	for _, variable := range environ {
		key, value, _ := strings.Cut(variable, "=")
		switch strings.ToUpper(key) {
		case "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY":
			if value != "" {
				return nil
			}
		case "NO_PROXY":
			direct = append(direct, value)
		case "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT":
			if u, err := url.Parse(value); err == nil && u.Hostname() != "" {
				direct = append(direct, u.Hostname())
			}
		}
	}
	proxy := "http://" + addrs.egress
	none := strings.Join(slices.DeleteFunc(direct, func(host string) bool { return host == "" }), ",")
	return []string{
		"HTTP_PROXY=" + proxy, "http_proxy=" + proxy, "HTTPS_PROXY=" + proxy, "https_proxy=" + proxy,
		"NO_PROXY=" + none, "no_proxy=" + none,
	}
}
