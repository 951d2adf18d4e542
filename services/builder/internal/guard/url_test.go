package guard_test

import (
	"errors"
	"log/slog"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/guard"
)

func newGuard(p guard.Policy) *guard.Guard { return guard.New(p, slog.New(slog.DiscardHandler)) }

func networks(cidrs ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, cidr := range cidrs {
		all = append(all, netip.MustParsePrefix(cidr))
	}
	return all
}

// reasonOf is the reason of an error, empty for none.
func reasonOf(t *testing.T, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	f, ok := errors.AsType[*fault.Error](err)
	if !ok {
		t.Fatalf("%v is no fault", err)
	}
	if f.Message == "" || f.Remedy == "" {
		t.Errorf("%#v says too little", f)
	}
	return f.Reason
}

const (
	ok        = ""
	malformed = "INVALID_FIELD"
	refused   = "POLICY_DENIED"
)

func TestFormOfURLs(t *testing.T) {
	for raw, want := range map[string]string{
		"https://github.com/moby/buildkit.git":  ok,
		"https://example.org":                   ok,
		"https://example.org:8443/a.tar.gz?x=y": ok,
		"http://example.org./a":                 ok,
		"HTTPS://EXAMPLE.ORG/a":                 ok,
		"https://user@example.org/a":            ok,
		"https://xn--bcher-kva.example/a":       ok,
		"https://a_b.example.org/a":             ok,
		"https://a/b@c/d":                       ok,
		"ssh://git@example.org:2222/a.git":      ok,
		"git@github.com:moby/buildkit.git":      ok,
		"git@GitHub.com:~user/repo":             ok,
		"https://8.8.8.8/a":                     ok,
		"https://[2606:4700::1111]/a":           ok,

		// Other schemes, and none.
		"git://example.org/a.git":        refused, // Unless the policy has it.
		"file:///etc/passwd":             refused,
		"file://localhost/etc/passwd":    refused,
		"FILE:///etc/passwd":             refused,
		"ext::sh -c id":                  malformed,
		"ext::sh":                        refused,
		"git+ssh://example.org/a":        refused,
		"git+https://example.org/a":      refused,
		"ftp://example.org/a":            refused,
		"gopher://example.org/a":         refused,
		"data:text/plain,x":              refused,
		"/srv/repo":                      malformed,
		"./repo":                         malformed,
		"example.org/a":                  malformed,
		"//example.org/a":                malformed,
		"":                               malformed,
		"http:example.org/a":             malformed,
		"http:/example.org/a":            malformed,
		"http:///a":                      malformed,
		"http://":                        malformed,
		"http://user@/a":                 malformed,
		"http://:80/a":                   malformed,
		"--upload-pack=id":               malformed,
		"-https://example.org":           malformed,
		"-oProxyCommand=id@host:path":    malformed,
		"git@host:-oProxyCommand":        malformed,
		"git@-host:path":                 malformed,
		"git@-oProxyCommand=id:path":     malformed,
		"ssh://-oProxyCommand=id/path":   malformed,
		"ssh://-oProxyCommand=id@h/path": malformed,
		"https://-example.org/a":         malformed,

		// What two readers may read in two ways.
		"http://a@b@example.org/":                            malformed,
		"http://example.org@127.0.0.1/":                      refused,
		"http://127.0.0.1@example.org/":                      ok,
		"http://127.0.0.1:80@example.org/":                   ok,
		`http://example.org\@127.0.0.1/`:                     malformed,
		`http://127.0.0.1\.example.org/`:                     malformed,
		"http://example.org /":                               malformed,
		"http://exam\tple.org/":                              malformed,
		"http://example.org/\r\nHost: x":                     malformed,
		"http://example.org/\x00":                            malformed,
		"http://example.org/\x7f":                            malformed,
		"http://%31%32%37.0.0.1/":                            malformed,
		"http://example%2eorg/":                              malformed,
		"http://bücher.example/":                             malformed,
		"http://１２７.0.0.1/":                                  malformed,
		"http://127。0。0。1/":                                  malformed,
		"http://ⓛocalhost/":                                  malformed,
		"http://example..org/":                               malformed,
		"http://.example.org/":                               malformed,
		"http://example.org../":                              malformed,
		"http://ex!ample.org/":                               malformed,
		"http://example.org:/":                               malformed,
		"http://example.org:0/":                              malformed,
		"http://example.org:65536/":                          malformed,
		"http://example.org:80:80/":                          malformed,
		"http://example.org:+80/":                            malformed,
		"http://[::1/":                                       malformed,
		"http://::1/":                                        malformed,
		"http://[fe80::1%25eth0]/":                           malformed,
		"http://" + strings.Repeat("a", 64) + ".org/":        malformed,
		"http://" + strings.Repeat("a.", 127) + "org/":       malformed,
		"http://example.org/" + strings.Repeat("a", 9000):    malformed,
		"http://localhost:5000/":                             refused,
		"http://LOCALHOST./":                                 refused,
		"http://a.localhost/":                                refused,
		"git@localhost:path":                                 refused,
		"git@127.0.0.1:path":                                 refused,
		"git@2130706433:path":                                refused,
		"http://localhost.example.org/":                      ok,
		"http://metadata.google.internal/computeMetadata/v1": ok, // Refused by its address.
	} {
		if got := reasonOf(t, newGuard(guard.Policy{}).CheckURL(raw)); got != want {
			t.Errorf("%q: %q, want %q", raw, got, want)
		}
	}
}

// Every way to write an address that must not be reached, as a host.
func TestAddressesThatAreRefused(t *testing.T) {
	hosts := []string{
		"127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
		"169.254.1.1", "169.254.169.254", "100.64.0.1", "100.127.255.255", "100.100.100.200", "168.63.129.16",
		"192.0.0.1", "192.0.0.192", "192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "198.19.255.255", "192.88.99.1",
		"224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "127.0.0.1.",
		// Numbers that the C library takes for addresses.
		"2130706433", "0x7f000001", "0x7f.1", "0x7f.0.0.1", "0177.0.0.1", "017700000001", "127.1", "127.0.1", "0", "0x",
		"3232235777", "0xa9fea9fe", "0XA9.0xFE.0xA9.0xFE", "169.254.43518", "1.2.3", "1.2.3.4.5", "256.1.1.1", "08.8.8.8", "example.1", "example.0x1",
		// IPv6.
		"[::]", "[::1]", "[0:0:0:0:0:0:0:1]", "[::127.0.0.1]", "[::8.8.8.8]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
		"[::ffff:10.0.0.1]", "[::FFFF:169.254.169.254]", "[fc00::1]", "[fd00:ec2::254]", "[fd12::1]", "[fe80::1]", "[febf::1]",
		"[fec0::1]", "[ff02::1]", "[2001:db8::1]", "[3fff::1]", "[100::1]", "[5f00::1]", "[4000::1]", "[2001:2::1]", "[2001:20::1]",
		"[64:ff9b::127.0.0.1]", "[64:ff9b::a00:1]", "[64:ff9b:1::1]", "[::ffff:0:127.0.0.1]",
		"[2002:7f00:1::]", "[2002:a9fe:a9fe::1]", "[2002:a00:1::1]",
		"[2001:0:7f00:1::]", "[2001:0:808:808:0:0:80ff:fffe]", // Teredo: the server, then the client, which is inverted.
		"[2606:4700::5efe:127.0.0.1]", "[2606:4700::200:5efe:10.0.0.1]", "[fe80::5efe:8.8.8.8]", // ISATAP.
	}
	for _, host := range hosts {
		for _, form := range []string{"https://%/a", "http://user@%:8080/a", "ssh://git@%/a"} {
			raw := strings.Replace(form, "%", host, 1)
			if got := reasonOf(t, newGuard(guard.Policy{}).CheckURL(raw)); got != refused {
				t.Errorf("%q: %q, want %q", raw, got, refused)
			}
		}
	}
}

func TestAddressesThatAreAllowed(t *testing.T) {
	for _, host := range []string{
		"8.8.8.8", "1.1.1.1", "172.15.0.1", "172.32.0.1", "192.0.1.1", "198.17.0.1", "198.20.0.1", "100.63.0.1", "100.128.0.1", "223.255.255.255",
		"[2606:4700::1111]", "[2a00:1450::1]", "[::ffff:8.8.8.8]", "[64:ff9b::8.8.8.8]", "[2002:808:808::1]", "[2001:0:808:808:0:0:f7f7:f7f7]", "[2001:4860::8888]",
	} {
		if err := newGuard(guard.Policy{}).CheckURL("https://" + host + "/"); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
}

func TestPolicy(t *testing.T) {
	for name, tc := range map[string]struct {
		policy guard.Policy
		raw    string
		want   string // the setting that is named, "none", or "" for what is allowed
	}{
		"no http":                  {guard.Policy{Schemes: []string{"https"}}, "http://example.org/", "policy.sources.schemes"},
		"git by configuration":     {guard.Policy{Schemes: []string{"git"}}, "git://example.org/a", ""},
		"ssh in its short form":    {guard.Policy{Schemes: []string{"https"}}, "git@example.org:a", "policy.sources.schemes"},
		"allowed host":             {guard.Policy{AllowedHosts: []string{"example.org"}}, "https://EXAMPLE.org./a", ""},
		"another host":             {guard.Policy{AllowedHosts: []string{"example.org"}}, "https://example.com/a", "policy.sources.allowed_hosts"},
		"not by its end":           {guard.Policy{AllowedHosts: []string{"example.org"}}, "https://badexample.org/a", "policy.sources.allowed_hosts"},
		"not as a part":            {guard.Policy{AllowedHosts: []string{"example.org"}}, "https://example.org.evil.com/a", "policy.sources.allowed_hosts"},
		"not as the user":          {guard.Policy{AllowedHosts: []string{"example.org"}}, "https://example.org@evil.com/a", "policy.sources.allowed_hosts"},
		"domain":                   {guard.Policy{AllowedHosts: []string{"*.Example.org"}}, "https://a.b.example.org/a", ""},
		"domain, not the top":      {guard.Policy{AllowedHosts: []string{"*.example.org"}}, "https://example.org/a", "policy.sources.allowed_hosts"},
		"domain, a dot needed":     {guard.Policy{AllowedHosts: []string{"*.example.org"}}, "https://badexample.org/a", "policy.sources.allowed_hosts"},
		"denied wins":              {guard.Policy{AllowedHosts: []string{"*"}, DeniedHosts: []string{"*.example.org"}}, "https://a.example.org/", "policy.sources.denied_hosts"},
		"denied, all":              {guard.Policy{DeniedHosts: []string{"*"}}, "https://example.org/", "policy.sources.denied_hosts"},
		"denied, an address":       {guard.Policy{DeniedHosts: []string{"8.8.8.8"}}, "https://[::ffff:8.8.8.8]/", "policy.sources.denied_hosts"},
		"allowing is no network":   {guard.Policy{AllowedHosts: []string{"127.0.0.1"}}, "https://127.0.0.1/", "policy.sources.networks"},
		"network":                  {guard.Policy{Networks: networks("127.0.0.0/8")}, "http://127.0.0.1:5000/", ""},
		"network, by name":         {guard.Policy{Networks: networks("127.0.0.0/8")}, "http://localhost/", ""},
		"network, of IPv4 in IPv6": {guard.Policy{Networks: networks("10.0.0.0/8")}, "http://[::ffff:10.1.1.1]/", ""},
		"network, through NAT64":   {guard.Policy{Networks: networks("10.0.0.0/8")}, "http://[64:ff9b::10.1.1.1]/", ""},
		"network, written as IPv6": {guard.Policy{Networks: networks("::ffff:10.0.0.0/104")}, "http://10.1.1.1/", ""},
		"network, another":         {guard.Policy{Networks: networks("10.20.0.0/16")}, "http://10.21.0.1/", "policy.sources.networks"},
		"a number is never":        {guard.Policy{Networks: networks("127.0.0.0/8")}, "http://2130706433/", "none"},
		"a file is never":          {guard.Policy{Schemes: []string{"file"}}, "file:///etc/passwd", "none"},
	} {
		t.Run(name, func(t *testing.T) {
			err := newGuard(tc.policy).CheckURL(tc.raw)
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			f, ok := errors.AsType[*fault.Error](err)
			if !ok || f.Kind != fault.PermissionDenied || f.Reason != refused {
				t.Fatalf("error %v", err)
			}
			if setting := f.Metadata["setting"]; setting != strings.TrimPrefix(tc.want, "none") || !strings.Contains(f.Remedy, setting) {
				t.Errorf("names the setting %q: %s", setting, fault.Line(f))
			}
		})
	}
}

func TestWellFormed(t *testing.T) {
	for raw, want := range map[string]string{
		"git://example.org/a": "", "http://127.0.0.1/": "", "git@localhost:a": "", // For a policy to say.
		"/srv/repo":          "is not a URL",
		"file:///srv/repo":   "the scheme file is never allowed",
		"http://2130706433/": "the host is a number that stands for an address",
	} {
		f := guard.WellFormed(raw)
		if want == "" && f != nil || want != "" && (f == nil || f.Kind != fault.InvalidArgument || f.Reason != malformed || f.Message != want) {
			t.Errorf("%s: %#v, want %q", raw, f, want)
		}
	}
}

func TestFaultsShowNoSecret(t *testing.T) {
	for _, raw := range []string{
		"http://user:hunter2@127.0.0.1/a?token=hunter2#hunter2", "http://hunter2@a@b/?hunter2", "http://a:hunter2@exa mple/", "ext::hunter2@", "file:///a?hunter2",
		"http://user:hunter2@:80/?hunter2", "ssh://hunter2@127.0.0.1/a",
	} {
		err := newGuard(guard.Policy{}).CheckURL(raw)
		f, ok := errors.AsType[*fault.Error](err)
		if !ok {
			t.Fatalf("%q: %v", raw, err)
		}
		if strings.Contains(fault.Line(f)+f.Value+strings.Join([]string{f.Metadata["url"], f.Metadata["host"]}, " "), "hunter2") {
			t.Errorf("%q: %#v", raw, f)
		}
	}
}

// An address that is in none of the refused networks, or in one, is judged the same
// in each of its forms.
func TestFormsOfOneAddressAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v4 := netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address")))
		b := v4.As4()
		judge := func(host string) bool { return newGuard(guard.Policy{}).CheckURL("http://"+host+"/") == nil }
		want := judge(v4.String())
		mapped := netip.AddrFrom16(v4.As16()).String()
		nat64 := netip.AddrFrom16([16]byte{0, 0x64, 0xff, 0x9b, 12: b[0], 13: b[1], 14: b[2], 15: b[3]}).String()
		sixToFour := netip.AddrFrom16([16]byte{0x20, 2, b[0], b[1], b[2], b[3], 15: 1}).String()
		for _, form := range []string{mapped, nat64, sixToFour} {
			if got := judge("[" + form + "]"); got != want {
				t.Errorf("%s is allowed: %t; %s: %t", v4, want, form, got)
			}
		}
	})
}

// rfc3986 reads a URL as RFC 3986, appendix B, does: another reader than Go's.
var rfc3986 = regexp.MustCompile(`^([^:/?#]+)://([^/?#]*)`)

// What passes has one host, whoever reads it.
func FuzzCheckURL(f *testing.F) {
	for _, seed := range []string{
		"https://example.org/a?b#c", "http://a@b:80/", "git@host:path", "http://[::ffff:1.2.3.4]:80/", "ssh://u:p@h.:22/x",
		`http://a\@b`, "http://a%40b/", "http://0x7f.1/", "http://a#@b/", "http://a?@b/", "HTTP://EXAMPLE.ORG./",
	} {
		f.Add(seed)
	}
	g := newGuard(guard.Policy{Schemes: []string{"https", "http", "ssh", "git"}, DeniedHosts: []string{"refused.example"}})
	f.Fuzz(func(t *testing.T, raw string) {
		if g.CheckURL(raw) != nil {
			return
		}
		var host string
		if m := rfc3986.FindStringSubmatch(raw); m != nil {
			authority := m[2][strings.LastIndexByte(m[2], '@')+1:]
			host = strings.Trim(regexp.MustCompile(`:[0-9]*$`).ReplaceAllString(authority, ""), "[]")
			u, err := url.Parse(raw)
			if err != nil || !strings.EqualFold(u.Hostname(), host) {
				t.Fatalf("%q has host %q for RFC 3986, and %v %v for Go", raw, host, u, err)
			}
		} else {
			_, rest, _ := strings.Cut(raw, "@")
			host, _, _ = strings.Cut(rest, ":")
		}
		bracketed := host
		if strings.Contains(host, ":") {
			bracketed = "[" + host + "]"
		}
		if err := g.CheckURL("https://" + bracketed + "/"); err != nil {
			t.Fatalf("%q passes, and its host %q alone does not: %v", raw, host, err)
		}
		if strings.TrimSuffix(strings.ToLower(host), ".") == "refused.example" {
			t.Fatalf("%q passes", raw)
		}
	})
}
