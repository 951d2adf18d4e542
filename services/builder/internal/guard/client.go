package guard

import (
	"errors"
	"net/http"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// maxRedirects is how many redirects are followed, as many as browsers and Go do.
const maxRedirects = 10

// Client fetches for the builder: each request, of a redirect too, is checked by
// its URL and by the address that is dialled. It asks no proxy. timeout bounds
// one fetch, with the reading of its body; 0 leaves that to the request's context.
// The errors of what is refused hold a *fault.Error.
func (g *Guard) Client(timeout time.Duration) *http.Client {
	return &http.Client{Transport: checked{g}, CheckRedirect: checkRedirect, Timeout: timeout}
}

// checked checks the URL of each request; the dialler checks its address.
type checked struct{ guard *Guard }

// RoundTrip implements http.RoundTripper.
func (c checked) RoundTrip(r *http.Request) (*http.Response, error) {
	t, err := c.guard.check(r.URL.String())
	if err != nil {
		return nil, err
	}
	if t.scheme != "http" && t.scheme != "https" {
		return nil, denied(t, "", "a redirect led to the scheme "+t.scheme, "")
	}
	return c.guard.transport.RoundTrip(r)
}

// checkRedirect refuses what leads from an encrypted to a plain connection, and
// what does not end.
func checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return errors.New("more than 10 redirects")
	}
	if via[len(via)-1].URL.Scheme == "https" && r.URL.Scheme != "https" {
		return fault.New(fault.PermissionDenied, "POLICY_DENIED",
			Redacted(via[len(via)-1].URL.String())+" leads by a redirect from https to "+Redacted(r.URL.String()),
			"name a URL that stays with https")
	}
	return nil
}
