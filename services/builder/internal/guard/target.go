package guard

import (
	"errors"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// target is what a URL leads to.
type target struct {
	url    string     // for people: without user and query
	scheme string     // lower case
	host   string     // lower case, without the dot at the end; an address in its usual form
	port   string     // empty: that of the scheme
	addr   netip.Addr // set when the host is an address
}

// schemes are those that a policy may allow.
var schemes = []string{"https", "http", "ssh", "git"}

var (
	// shortForm is git's user@host:path for ssh.
	shortForm = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*@([A-Za-z0-9.-]+):([^-:\s].*)$`)
	// hostName takes what stands in names that are in use, underscores too.
	hostName = regexp.MustCompile(`^([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*$`)
	// number is what the C library takes for a part of an IPv4 address:
	// decimal, octal or hexadecimal.
	number = regexp.MustCompile(`^(0x[0-9a-f]*|[0-9]+)$`)
)

const (
	maxURL  = 8192
	maxHost = 253 // RFC 1035
)

// WellFormed says whether a URL, or git's user@host:path, is of a form that some
// policy allows: INVALID_FIELD for the rest. The caller sets the field.
func WellFormed(raw string) *fault.Error {
	_, err := parse(raw)
	f, bad := errors.AsType[*fault.Error](err)
	if bad && f.Kind != fault.InvalidArgument {
		f = malformed(raw, f.Err.Error())
	}
	return f
}

// parse reads a URL so strictly that whoever reads it next finds the same host.
func parse(raw string) (target, error) {
	switch {
	case raw == "" || len(raw) > maxURL:
		return target{}, malformed(raw, "is empty or too long")
	case strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\\' }):
		return target{}, malformed(raw, "holds a blank, a control character or a backslash")
	case raw[0] == '-':
		return target{}, malformed(raw, `begins with "-", as an option does`)
	}
	if m := shortForm.FindStringSubmatch(raw); m != nil && !strings.Contains(raw, "://") {
		t := target{url: m[1] + ":" + m[2], scheme: "ssh"}
		return t, t.setHost(raw, m[1])
	}
	u, err := url.Parse(raw)
	if err != nil || u.Scheme == "" {
		return target{}, malformed(raw, "is not a URL")
	}
	t := target{url: u.Scheme + "://" + u.Host + u.EscapedPath(), scheme: u.Scheme, port: u.Port()}
	if !slices.Contains(schemes, t.scheme) {
		t.url = t.scheme + ":…"
		return target{}, denied(t, "", "the scheme "+t.scheme+" is never allowed", "")
	}
	user, host, ok := authorityOf(raw, u.Scheme)
	switch {
	case !ok || host == "":
		return target{}, malformed(raw, "names no host")
	case strings.HasPrefix(user, "-") || strings.Contains(user, "@"),
		strings.Contains(host, "%"), strings.HasSuffix(host, ":"), !strings.EqualFold(host, u.Host):
		return target{}, malformed(raw, "has a user or a host that can be read in more than one way")
	}
	if port, err := strconv.ParseUint(t.port, 10, 16); t.port != "" && (err != nil || port == 0) {
		return target{}, malformed(raw, "has no port between 1 and 65535")
	}
	return t, t.setHost(raw, u.Hostname())
}

// authorityOf cuts the user and the host with its port out of a URL, undecoded.
func authorityOf(raw, scheme string) (user, host string, ok bool) {
	rest, ok := strings.CutPrefix(raw[len(scheme):], "://")
	if at := strings.IndexAny(rest, "/?#"); at >= 0 {
		rest = rest[:at]
	}
	at := strings.LastIndexByte(rest, '@')
	return rest[:max(0, at)], rest[at+1:], ok
}

// setHost takes the host of a URL: an address in its usual form, or a name.
func (t *target) setHost(raw, host string) error {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	t.host = host
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" {
			return malformed(raw, "has an address with a zone")
		}
		t.addr = addr.Unmap()
		t.host = t.addr.String()
		return nil
	}
	if len(host) > maxHost || !hostName.MatchString(host) {
		return malformed(raw, "has a host that is neither an address nor a name in ASCII")
	}
	// A last part that is a number makes the C library, git and browsers take the
	// whole for an address: 0x7f.1, 2130706433, 0177.0.0.1 are 127.0.0.1.
	if number.MatchString(host[strings.LastIndexByte(host, '.')+1:]) {
		return denied(*t, "", "the host is a number that stands for an address", "")
	}
	return nil
}

// malformed is the fault for what is no URL. The caller sets its field.
func malformed(raw, why string) *fault.Error {
	return fault.Invalid("", Redacted(raw), why,
		`write it like "https://host/group/project.git", "https://host/file.tar.gz" or "git@host:group/project.git"`)
}

// Refusal begins the message of each denial, also of those that the proxy sends.
const Refusal = "the builder's policy does not allow"

// denied is the fault for what the policy does not allow. setting is the key of
// the builder's configuration that would allow it, empty when none does. The
// caller sets its field.
func denied(t target, addr, why, setting string) *fault.Error {
	f := fault.Wrap(errors.New(why), fault.PermissionDenied, "POLICY_DENIED", Refusal+" "+t.url,
		"take the source from another host")
	f.Value = t.url
	f.Metadata = map[string]string{"url": t.url, "host": t.host}
	if addr != "" {
		f.Metadata["address"] = addr
	}
	if setting != "" {
		f.Metadata["setting"] = setting
		f.Remedy += ", or have the operator allow it with " + setting + " in the builder's configuration"
	}
	return f
}

// Redacted is a URL without what may be secret in it, the user and the query, for
// messages.
func Redacted(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Opaque != "" {
		return "(not shown)"
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}
