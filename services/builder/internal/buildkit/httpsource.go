package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/version"
	"github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Bounds of what the builder reads to know what a daemon will read.
const (
	maxPinned  = 10 << 30 // bytes
	pinTimeout = 10 * time.Minute
	// probeTimeout bounds a request whose answer is not read.
	probeTimeout = 30 * time.Second
)

// judgeHTTP fetches an HTTP source as the daemon will, and holds the daemon to the
// digest of what came. A source with a checksum is held to it already, and only the
// way there is looked at.
func (p *sourcePolicy) judgeHTTP(ctx context.Context, source *pb.SourceOp) (map[string]string, error) {
	raw := source.GetIdentifier()
	if err := p.guard.CheckResolved(ctx, raw); err != nil {
		return nil, err
	}
	timeout := pinTimeout
	if source.GetAttrs()[pb.AttrHTTPChecksum] != "" {
		timeout = probeTimeout
	}
	response, err := p.get(ctx, raw, p.headers(source), timeout)
	if err == nil {
		defer response.Body.Close()
	}
	switch {
	case source.GetAttrs()[pb.AttrHTTPChecksum] != "":
		return nil, refusal(err)
	case err != nil:
		return nil, unread(raw, err)
	case response.StatusCode < 200 || response.StatusCode > 299:
		return nil, badStatus(raw, response.StatusCode)
	}
	digester := digest.SHA256.Digester()
	n, err := io.Copy(digester.Hash(), io.LimitReader(response.Body, maxPinned+1))
	if err != nil {
		return nil, unread(raw, err)
	}
	if n > maxPinned {
		return nil, fault.New(fault.ResourceExhausted, "LIMIT_REACHED", fmt.Sprintf("%s has more than %d bytes", shown(raw), int64(maxPinned)),
			"give its digest, as ADD --checksum does")
	}
	return map[string]string{pb.AttrHTTPChecksum: digester.Digest().String()}, nil
}

func (p *sourcePolicy) get(ctx context.Context, raw string, headers http.Header, timeout time.Duration) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, raw, nil)
	if err != nil {
		return nil, err
	}
	request.Header = headers
	return p.guard.Client(timeout).Do(request)
}

// headers are those that the daemon sends, so that the answer is the same: see
// newHTTPRequest in BuildKit's source/http.
func (p *sourcePolicy) headers(source *pb.SourceOp) http.Header {
	headers := http.Header{"User-Agent": {version.UserAgent()}}
	for name, value := range source.GetAttrs() {
		switch name, _ := strings.CutPrefix(name, pb.AttrHTTPHeaderPrefix); http.CanonicalHeaderKey(name) {
		case "Accept", "User-Agent":
			headers.Set(name, value)
		}
	}
	if name := source.GetAttrs()[pb.AttrHTTPAuthHeaderSecret]; name != "" {
		p.authorize(headers, name, "")
		return headers
	}
	if u, err := url.Parse(source.GetIdentifier()); err == nil {
		p.authorize(headers, "HTTP_AUTH_HEADER_"+u.Hostname(), "")
		p.authorize(headers, "HTTP_AUTH_TOKEN_"+u.Hostname(), "Bearer ")
	}
	return headers
}

func (p *sourcePolicy) authorize(headers http.Header, secret, scheme string) {
	if value, ok := p.secrets[secret]; ok {
		headers.Set("Authorization", scheme+string(value))
	}
}

// refusal is the guard's part of an error, nil when it has none.
func refusal(err error) error {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return f
	}
	return nil
}

// unread is the error for a source that the builder could not read, which nobody
// then reads: it may lead the daemon elsewhere.
func unread(raw string, err error) error {
	if f := refusal(err); f != nil {
		return f
	}
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err // without the URL, which may hold a secret
	}
	return fault.Wrap(err, fault.Unavailable, "SOURCE_NOT_FOUND", "the builder cannot read "+shown(raw),
		"check the URL, and that the builder can reach its host")
}

func badStatus(raw string, status int) error {
	message := fmt.Sprintf("%s answers %d %s", shown(raw), status, http.StatusText(status))
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return fault.New(fault.PermissionDenied, "SOURCE_DENIED", message, "send credentials as the secret HTTP_AUTH_TOKEN_<host> or HTTP_AUTH_HEADER_<host>")
	case http.StatusNotFound, http.StatusGone:
		return fault.New(fault.NotFound, "SOURCE_NOT_FOUND", message, "check the URL")
	default:
		return fault.New(fault.Unavailable, "SOURCE_NOT_FOUND", message, "build again when the server serves it")
	}
}

// shown is a URL without what may be secret in it.
func shown(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "a URL"
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}
