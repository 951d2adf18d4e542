package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"

	ggcr "github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

// reason is that of every error here.
const reason = "REGISTRY_UNAVAILABLE"

// explain makes an error of the registry one that says what is wrong and what to
// do. Doing is what it was asked, such as "list its repositories".
func (c *Client) explain(ctx context.Context, err error, doing string) error {
	if err == nil {
		return nil
	}
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return context.Canceled // The caller gave up; the registry is not to blame.
	}
	message := fmt.Sprintf("registry %s did not %s", c.Address(), doing)
	if answer, ok := errors.AsType[*ggcr.Error](err); ok {
		kind, err := explainAnswer(answer)
		remedy := "look at the registry's log"
		if errors.Is(kind, content.ErrDenied) {
			remedy = "check registry.username and the password in registry.password_file, and what that user may do"
		}
		return fault.Wrap(err, fault.Unavailable, reason, message, remedy)
	}
	if none, ok := errors.AsType[*silence](err); ok {
		err = none.err // Without the method and the URL around it.
	} else if ctx.Err() == nil {
		return fault.Wrap(fmt.Errorf("%w: %w", content.ErrBroken, err), fault.Unavailable, reason, message,
			"check that a registry listens on "+c.Address())
	}
	if ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) {
		return fault.New(fault.Unavailable, reason, message+" in time",
			"look at the registry's log: it may hang, or its storage may be slow")
	}
	if _, untrusted := errors.AsType[*tls.CertificateVerificationError](err); untrusted {
		return fault.Wrap(err, fault.Unavailable, reason, message,
			"add the authority of its certificate to those of the system, or name them in SSL_CERT_FILE")
	}
	return fault.Wrap(err, fault.Unavailable, reason, message, "start the registry, and check that it listens on "+c.Address())
}

// explainAnswer puts an answer that was no success into the domain's words: its
// kind, and the whole.
func explainAnswer(answer *ggcr.Error) (kind, whole error) {
	kind = content.ErrBroken
	switch answer.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		kind = content.ErrDenied
	case http.StatusNotFound:
		kind = content.ErrNotFound
	case http.StatusMethodNotAllowed:
		kind = content.ErrUnsupported
	}
	return kind, fmt.Errorf("%w: %d %s%s", kind, answer.StatusCode, http.StatusText(answer.StatusCode), codesOf(answer))
}

// codesOf are the error codes of an answer, such as " UNSUPPORTED".
func codesOf(answer *ggcr.Error) string {
	text := ""
	for _, d := range answer.Errors {
		text += " " + string(d.Code)
	}
	return text
}
