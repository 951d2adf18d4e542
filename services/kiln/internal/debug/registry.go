package debug

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"time"

	"github.com/pelletier/go-toml/v2"
)

func gidOf(name string) (int, error) {
	group, err := user.LookupGroup(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(group.Gid)
}

// errNoRegistry says that neither the profile nor a flag names a registry.
var errNoRegistry = errors.New("the profile names no registry")

// answer is what the registry said to GET /v2/.
type answer struct {
	scheme string
	status int
	skew   time.Duration // of its clock to ours; positive: it is ahead
	dated  bool
	end    time.Time // of its certificate
}

// askRegistry asks by HTTPS, and then by HTTP.
func (o *options) askRegistry(ctx context.Context) (a answer, err error) {
	if o.registry == "" {
		return a, errNoRegistry
	}
	roots, _ := x509.SystemCertPool()
	if o.registryCA != "" {
		if pem, err := os.ReadFile(o.registryCA); err == nil {
			roots = x509.NewCertPool()
			roots.AppendCertsFromPEM(pem)
		}
	}
	var first error
	for _, scheme := range []string{"https", "http"} {
		transport := &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, DialContext: (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
			DisableKeepAlives: true,
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+o.registry+"/v2/", nil)
		if err != nil {
			return a, err
		}
		sent := time.Now()
		res, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Do(req)
		if err != nil {
			if first == nil {
				first = err
			}
			if scheme == "http" {
				return a, fmt.Errorf("%w; by https: %w", err, first)
			}
			continue
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 1<<20))
		_ = res.Body.Close()
		if scheme == "https" && res.StatusCode == http.StatusBadRequest {
			continue
		}
		a.scheme, a.status = scheme, res.StatusCode
		if at, err := http.ParseTime(res.Header.Get("Date")); err == nil {
			half := time.Since(sent) / 2
			a.skew, a.dated = at.Sub(sent.Add(half)), true
		}
		if res.TLS != nil && len(res.TLS.PeerCertificates) > 0 {
			a.end = res.TLS.PeerCertificates[0].NotAfter
		}
		return a, nil
	}
	return a, first
}

// registryCheck asks the registry whether it is there, and how it wants to be spoken to.
func (o *options) registryCheck(ctx context.Context) []Finding {
	a, err := o.askRegistry(ctx)
	if errors.Is(err, errNoRegistry) {
		return unknown("the profile names no registry: add registry.address there, or use --registry")
	}
	if err != nil {
		return []Finding{{
			State: Fail, Message: "the registry " + o.registry + " does not answer", Evidence: []string{err.Error()},
			Remedy: "sudo systemctl restart kiln-registry, or docker restart outros-containers-registry; or name it with --registry",
		}}
	}
	seen := fmt.Sprintf("GET %s://%s/v2/ answers %d", a.scheme, o.registry, a.status)
	switch a.status {
	case http.StatusOK:
		return ok("%s", seen)
	case http.StatusUnauthorized:
		return ok("%s: it asks who is there; log in with `docker login %s`, and give the builder and the janitor users", seen, o.registry)
	default:
		return []Finding{{
			State: Fail, Message: "what answers at " + o.registry + " is no registry that is well", Evidence: []string{seen},
			Remedy: "see its log: journalctl -u kiln-registry, or docker logs outros-containers-registry",
		}}
	}
}

// insecureCheck holds what buildkitd is told of the registry against what it speaks.
func (o *options) insecureCheck(ctx context.Context) []Finding {
	a, err := o.askRegistry(ctx)
	if err != nil {
		return unknown("the registry does not answer")
	}
	text, err := os.ReadFile(o.daemonConfig)
	if err != nil {
		return unknown("buildkitd's configuration cannot be read (%v): name it with --daemon-config", err)
	}
	var config struct {
		Registry map[string]struct {
			HTTP     *bool `toml:"http"`
			Insecure *bool `toml:"insecure"`
		} `toml:"registry"`
	}
	if err := toml.Unmarshal(text, &config); err != nil {
		return []Finding{{State: Fail, Message: "buildkitd's configuration is no TOML", Evidence: []string{o.daemonConfig + ": " + err.Error()}, Remedy: "correct " + o.daemonConfig}}
	}
	told, named := config.Registry[o.registry]
	is := func(b *bool) bool { return b != nil && *b }
	host, _, err := net.SplitHostPort(o.registry)
	if err != nil {
		host = o.registry
	}
	loopback := host == "localhost" || net.ParseIP(host).IsLoopback()
	switch {
	case a.scheme == "http" && !is(told.HTTP) && !is(told.Insecure) && !loopback:
		return []Finding{{
			State: Fail, Message: "the registry speaks plain HTTP, and buildkitd is not told that it may: pushes and caches fail",
			Evidence: []string{fmt.Sprintf("%s has no http = true for %q", o.daemonConfig, o.registry)},
			Remedy:   fmt.Sprintf("add [registry.%q] with http = true to %s and restart buildkitd; better, give the registry a certificate", o.registry, o.daemonConfig),
		}}
	case a.scheme == "https" && (is(told.HTTP) || loopback && (!named || told.HTTP == nil)):
		return []Finding{{
			State: Fail, Message: "the registry speaks HTTPS, and buildkitd will speak plain HTTP to it", Evidence: []string{o.daemonConfig + " has no http = false for it, which BuildKit needs of names like localhost"},
			Remedy: fmt.Sprintf("set [registry.%q] http = false, and ca = [\"…/ca.crt\"], in %s and restart buildkitd", o.registry, o.daemonConfig),
		}}
	}
	return ok("buildkitd is told of the registry as it is (%s)", a.scheme)
}

// clockCheck compares clocks: with the registry's, which says what time it has.
func (o *options) clockCheck(ctx context.Context) []Finding {
	a, err := o.askRegistry(ctx)
	if err != nil || !a.dated {
		return unknown("nobody tells the time: the registry does not answer")
	}
	const most = 30 * time.Second
	if a.skew.Abs() > most {
		return []Finding{{
			State: Fail, Message: fmt.Sprintf("the clocks of this host and of the registry are %s apart: certificates and ages of caches are judged wrongly", a.skew.Abs().Round(time.Second)),
			Evidence: []string{fmt.Sprintf("the registry's is %s to ours", signed(a.skew))}, Remedy: "sudo timedatectl set-ntp true, on both hosts",
		}}
	}
	return ok("this clock and the registry's are within %s", most)
}

func signed(d time.Duration) string {
	if d > 0 {
		return "+" + d.Round(time.Second).String()
	}
	return d.Round(time.Second).String()
}
