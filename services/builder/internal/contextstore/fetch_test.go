package contextstore_test

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// serve serves an archive by a handler; it counts the requests.
func serve(t *testing.T, handler http.HandlerFunc) (from string, asked *atomic.Int32) {
	t.Helper()
	asked = new(atomic.Int32)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		handler(w, r)
	}))
	t.Cleanup(server.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return server.URL, asked
}

// An unchanged archive is asked for, but does not come again; one whose digest is
// wanted is not even asked for; a changed one comes.
func TestFetchAgain(t *testing.T) {
	var archive atomic.Pointer[[]byte]
	set := func(data []byte) { archive.Store(&data) }
	set(good(t))
	var sent atomic.Int32
	from, asked := serve(t, func(w http.ResponseWriter, r *http.Request) {
		data := *archive.Load()
		w.Header().Set("ETag", `"`+digestOf(data)+`"`)
		if r.Header.Get("If-None-Match") == "" || r.Header.Get("If-None-Match") != w.Header().Get("ETag") {
			sent.Add(1)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	})
	s, dir := newStore(t, limits())
	for i, step := range []struct {
		want        string
		asked, sent int32
	}{
		{"", 1, 1}, {"", 2, 1}, {digestOf(good(t)), 2, 1}, {"", 3, 1},
	} {
		info, err := s.Fetch(t.Context(), http.DefaultClient, project, from+"/?token=s3cret", step.want)
		if err != nil || info.Digest != put(t, s, good(t)).Digest {
			t.Fatalf("step %d: %+v, %v", i, info, err)
		}
		if asked.Load() != step.asked || sent.Load() != step.sent {
			t.Errorf("step %d: asked %d times, sent %d times; want %d, %d", i, asked.Load(), sent.Load(), step.asked, step.sent)
		}
	}
	changed := tarOf(t, item{Name: "a", Body: "changed"})
	set(changed)
	if info, err := s.Fetch(t.Context(), http.DefaultClient, project, from+"/?token=s3cret", ""); err != nil || info.Digest != put(t, s, changed).Digest {
		t.Errorf("changed: %+v, %v", info, err)
	}
	before := onDisk(t, dir)
	_, err := s.Fetch(t.Context(), http.DefaultClient, project, from+"/other", digestOf([]byte("other")))
	_ = wantFault(t, err, fault.InvalidArgument, "DIGEST_MISMATCH")
	if after := onDisk(t, dir); after != before || strings.Contains(after, "s3cret") {
		t.Errorf("left behind:\n%s", after)
	}
}

// By its time alone an archive counts as unchanged only if that was past as it was read: it is
// told by the second, and another may have been written in the same one.
func TestFetchAgainByTime(t *testing.T) {
	first, second := good(t), tarOf(t, item{Name: "a", Body: "changed"})
	for name, c := range map[string]struct {
		age  time.Duration
		want []byte
	}{"changed within the second": {0, second}, "changed before": {time.Minute, first}} {
		t.Run(name, func(t *testing.T) {
			changed := time.Now().Add(-c.age)
			var archive atomic.Pointer[[]byte]
			archive.Store(&first)
			from, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
				http.ServeContent(w, r, "", changed, bytes.NewReader(*archive.Load()))
			})
			s, _ := newStore(t, limits())
			if _, err := s.Fetch(t.Context(), http.DefaultClient, project, from, ""); err != nil {
				t.Fatal(err)
			}
			archive.Store(&second) // with the same time
			if info, err := s.Fetch(t.Context(), http.DefaultClient, project, from, ""); err != nil || info.Digest != put(t, s, c.want).Digest {
				t.Errorf("%+v, %v", info, err)
			}
		})
	}
}

// What goes wrong on the way is told apart, and no secret of the URL is told.
func TestFetchFails(t *testing.T) {
	denied := fault.New(fault.PermissionDenied, "SOURCE_DENIED", "the policy denies it", "ask for it")
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		client  *http.Client
		kind    fault.Kind
		reason  string
	}{
		"missing":   {status(404), nil, fault.NotFound, "SOURCE_NOT_FOUND"},
		"forbidden": {status(403), nil, fault.PermissionDenied, "SOURCE_DENIED"},
		"broken":    {status(502), nil, fault.Unavailable, "SOURCE_NOT_FOUND"},
		"a page":    {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, nil, fault.InvalidArgument, "ARCHIVE_INVALID"},
		"cut": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100000")
			_, _ = w.Write(make([]byte, 600))
		}, nil, fault.Unavailable, "SOURCE_NOT_FOUND"},
		"policy":  {status(200), &http.Client{Transport: failing{denied}}, fault.PermissionDenied, "SOURCE_DENIED"},
		"down":    {status(200), &http.Client{Transport: failing{errors.New("connection refused")}}, fault.Unavailable, "SOURCE_NOT_FOUND"},
		"stalled": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, nil, fault.DeadlineExceeded, "TIMED_OUT"},
	} {
		t.Run(name, func(t *testing.T) {
			from, _ := serve(t, c.handler)
			client := c.client
			if client == nil {
				client = http.DefaultClient
			}
			bounds := limits()
			bounds.FetchTimeout = time.Second
			s, dir := newStore(t, bounds)
			before := onDisk(t, dir)
			_, err := s.Fetch(t.Context(), client, project, strings.Replace(from, "http://", "http://user:s3cret@", 1)+"/a.tar?s3cret", "")
			failed := wantFault(t, err, c.kind, c.reason)
			if text := err.Error() + failed.Remedy + failed.Value; strings.Contains(text, "s3cret") {
				t.Errorf("tells the secret: %s", text)
			}
			if after := onDisk(t, dir); after != before {
				t.Errorf("left behind:\n%s", after)
			}
		})
	}
}

type failing struct{ err error }

func (f failing) RoundTrip(*http.Request) (*http.Response, error) { return nil, f.err }
