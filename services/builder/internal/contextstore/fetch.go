package contextstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Fetch stores the context in the archive behind a URL for a project, and counts as its use. An
// archive that is known and unchanged is not fetched again: one whose digest is
// wanted without asking, others when the server says so. client decides which
// hosts and redirects are followed; a *fault.Error of its transport is returned
// as it is.
//
// Errors: those of Put; faults NOT_FOUND (SOURCE_NOT_FOUND), PERMISSION_DENIED
// (SOURCE_DENIED), UNAVAILABLE (SOURCE_NOT_FOUND) and DEADLINE_EXCEEDED.
func (s *Store) Fetch(ctx context.Context, client *http.Client, project, from, want string) (Info, error) {
	var digest *Digest
	if want != "" {
		d, err := ParseDigest(want)
		if err != nil {
			return Info{}, err
		}
		digest = &d
	}
	late := fault.New(fault.DeadlineExceeded, "TIMED_OUT", fmt.Sprintf("fetching the archive took longer than %s", s.limits.FetchTimeout),
		"have it served faster, or have the builder's contexts.fetch_timeout raised")
	ctx, cancel := context.WithTimeoutCause(ctx, s.limits.FetchTimeout, late)
	defer cancel()

	known := s.known(urlName(project, from))
	if known.Archive != "" && known.Archive == want {
		return s.Use(project, known.Context)
	}
	info, err := s.fetch(ctx, client, project, from, digest, known)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) && fault.KindOf(err) != fault.DeadlineExceeded {
		return Info{}, context.Cause(ctx)
	}
	return info, err
}

func (s *Store) fetch(
	ctx context.Context, client *http.Client, project, from string, want *Digest, known fetched,
) (Info, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return Info{}, unreachable(from, err)
	}
	// The digest is of the bytes as they lie there, not of another coding of them.
	req.Header.Set("Accept-Encoding", "identity")
	if want == nil { // what is known has another digest than the wanted one
		setIf(req.Header, "If-None-Match", known.ETag)
		setIf(req.Header, "If-Modified-Since", known.LastModified)
	}
	res, err := client.Do(req)
	if err != nil {
		return Info{}, unreachable(from, err)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusNotModified && known.Context != "" {
		if info, err := s.Use(project, known.Context); err == nil {
			return info, nil
		}
		return s.fetch(ctx, client, project, from, want, fetched{}) // it was swept just now
	}
	if res.StatusCode != http.StatusOK {
		return Info{}, answered(from, res.StatusCode)
	}
	archive := &packed{from: res.Body, sum: sha256.New()}
	info, err := s.put(ctx, project, archive, want)
	if err != nil {
		if archive.failed != nil && errors.Is(err, archive.failed) {
			return Info{}, unreachable(from, archive.failed)
		}
		return Info{}, err
	}
	s.remember(ctx, urlName(project, from), fetched{
		Context: info.Digest, Archive: archive.digest().String(),
		ETag: res.Header.Get("ETag"), LastModified: lastModified(res.Header),
	})
	return info, nil
}

// lastModified is when an archive was last changed, if another change since would have another
// time: it is told by the second (RFC 9110, section 8.8.2.2).
func lastModified(header http.Header) string {
	at := header.Get("Last-Modified")
	changed, err := http.ParseTime(at)
	answered, none := http.ParseTime(header.Get("Date"))
	if err != nil || none != nil || answered.Sub(changed) < 2*time.Second {
		return ""
	}
	return at
}

func setIf(header http.Header, name, value string) {
	if value != "" {
		header.Set(name, value)
	}
}

// unreachable says that a URL cannot be read, unless policy forbade it.
func unreachable(from string, err error) error {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return f
	}
	if errors.Is(err, context.Canceled) {
		return context.Canceled
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // it names the whole URL
	}
	return fault.Wrap(err, fault.Unavailable, "SOURCE_NOT_FOUND", fmt.Sprintf("the archive at %s cannot be read", bare(from)),
		"see that the builder can reach the host, and try again")
}

// answered says what a status other than success means.
func answered(from string, status int) error {
	message := fmt.Sprintf("the archive at %s cannot be read: the host answered %d %s", bare(from), status, http.StatusText(status))
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return fault.New(fault.PermissionDenied, "SOURCE_DENIED", message, "name a URL that may be read without credentials")
	case status == http.StatusTooManyRequests, status >= http.StatusInternalServerError:
		return fault.New(fault.Unavailable, "SOURCE_NOT_FOUND", message, "try again")
	default:
		return fault.New(fault.NotFound, "SOURCE_NOT_FOUND", message, "name a URL that answers with the archive itself")
	}
}

// bare is a URL without what may be secret in it.
func bare(from string) string {
	u, err := url.Parse(from)
	if err != nil {
		return "the URL"
	}
	return shown((&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String())
}
