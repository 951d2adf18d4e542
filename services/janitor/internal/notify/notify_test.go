package notify_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/services/janitor/internal/lastuse"
	"github.com/kilnbuild/kiln/services/janitor/internal/notify"
)

var now = time.Now().Add(5 * 24 * time.Hour) // of a clock that was moved

// kept is a store, and counts.
type kept struct {
	uses   []lastuse.Use
	counts map[string]int
	err    error
}

func (k *kept) RecordUses(_ context.Context, uses []lastuse.Use) (int, error) {
	k.uses = append(k.uses, uses...)
	return len(uses), k.err
}

func (k *kept) Notified(_ context.Context, outcome string, n int) { k.counts[outcome] += n }

func listener() (*notify.Listener, *kept) {
	k := &kept{counts: map[string]int{}}
	return notify.New(notify.Options{
		Store: k, Metrics: k, Log: slog.New(slog.DiscardHandler), Secret: "secret", UserAgent: "kiln-janitor", Now: func() time.Time { return now },
	}), k
}

func post(l http.Handler, secret, body string) int {
	req := httptest.NewRequest(http.MethodPost, "/registry-events", strings.NewReader(body))
	req.Header.Set("Authorization", "Bearer "+secret)
	w := httptest.NewRecorder()
	l.ServeHTTP(w, req)
	return w.Code
}

const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func event(action, mediaType, repository, tag, agent, at string) string {
	return `{"events":[{"id":"x","timestamp":"` + at + `","action":"` + action + `","target":{"mediaType":"` + mediaType + `","digest":"` + digest +
		`","repository":"` + repository + `","tag":"` + tag + `"},"request":{"useragent":"` + agent + `"}}]}`
}

const manifest = "application/vnd.oci.image.manifest.v1+json"

// What events are uses of, and of what time.
func TestUses(t *testing.T) {
	hourAgo := time.Now().Add(-time.Hour).Format(time.RFC3339Nano)
	for name, c := range map[string]struct {
		body    string
		want    []string // names of what was used, "+" before pushes
		outcome string
	}{
		"pull":                   {event("pull", manifest, "a", "", "docker", hourAgo), []string{digest}, "kept"},
		"pull of a tag":          {event("pull", manifest, "a", "t", "docker", hourAgo), []string{digest, ":t"}, "kept"},
		"push":                   {event("push", manifest, "a", "t", "docker", hourAgo), []string{"+" + digest, "+:t"}, "kept"},
		"pull of a blob":         {event("pull", "application/octet-stream", "a", "", "docker", hourAgo), []string{"/" + digest}, "kept"},
		"mount of a blob":        {event("mount", "application/octet-stream", "a", "", "docker", hourAgo), []string{"/" + digest}, "kept"},
		"push of a blob":         {event("push", "application/octet-stream", "a", "", "docker", hourAgo), nil, "kept"},
		"delete":                 {event("delete", manifest, "a", "", "docker", hourAgo), nil, "other"},
		"the janitor's own":      {event("pull", manifest, "a", "t", "kiln-janitor", hourAgo), nil, "own"},
		"without a repository":   {event("pull", manifest, "", "t", "docker", hourAgo), nil, "malformed"},
		"with a long repository": {event("pull", manifest, strings.Repeat("a", 300), "t", "docker", hourAgo), nil, "malformed"},
	} {
		l, k := listener()
		if got := post(l, "secret", c.body); got != http.StatusOK || k.counts[c.outcome] != 1 {
			t.Errorf("%s: %d, %v", name, got, k.counts)
		}
		var got []string
		for _, u := range k.uses {
			text := string(u.Name)
			if u.Push {
				text = "+" + text
			}
			got = append(got, text)
			if ago := now.Sub(u.At); ago < 59*time.Minute || ago > 61*time.Minute {
				t.Errorf("%s: used %s ago", name, ago)
			}
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	l, k := listener()
	for _, repository := range []string{"a", "a", "b", "a"} { // at once: one use of each
		post(l, "secret", event("pull", "application/octet-stream", repository, "", "docker", hourAgo))
	}
	if len(k.uses) != 2 || k.uses[0].Repository != "a" || k.uses[1].Repository != "b" {
		t.Errorf("pulls of one blob at once: %+v", k.uses)
	}
	l, k = listener()
	post(l, "secret", event("pull", manifest, "a", "", "docker", time.Now().Add(time.Hour).Format(time.RFC3339Nano)))
	if k.uses[0].At.After(now) {
		t.Errorf("used in the future: %s", k.uses[0].At)
	}
}

// The registry is told to send again what could not be kept, and its secret is asked for.
func TestAnswers(t *testing.T) {
	l, k := listener()
	k.err = errors.New("no space")
	if got := post(l, "secret", event("pull", manifest, "a", "", "", time.Now().Format(time.RFC3339))); got != http.StatusServiceUnavailable {
		t.Errorf("not kept: %d", got)
	}
	for _, secret := range []string{"", "Secret", "secret2"} {
		if got := post(l, secret, "{}"); got != http.StatusUnauthorized {
			t.Errorf("%q: %d", secret, got)
		}
	}
	if len(k.uses) != 1 || k.counts["failed"] != 1 || k.counts["denied"] != 3 {
		t.Errorf("%v, %v", k.uses, k.counts)
	}
}

// The push of the canary is heard, before it is waited for and after.
func TestAwait(t *testing.T) {
	l, _ := listener()
	body := event("push", "application/octet-stream", "kiln-janitor/canary", "", "kiln-janitor", time.Now().Format(time.RFC3339))
	heard := make(chan error, 1)
	go func() { heard <- l.Await(t.Context(), "push", "kiln-janitor/canary", digest, 1) }()
	for len(heard) == 0 {
		post(l, "secret", body)
		time.Sleep(time.Millisecond)
	}
	if err := <-heard; err != nil {
		t.Error(err)
	}
	post(l, "secret", body)
	if err := l.Await(t.Context(), "push", "kiln-janitor/canary", digest, 1); err != nil {
		t.Errorf("heard before: %v", err)
	}
	for i := range 500 { // nobody comes for these
		post(l, "secret", strings.ReplaceAll(body, "canary", fmt.Sprint("canary", i)))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := l.Await(ctx, "push", "kiln-janitor/canary", digest, 1); err == nil {
		t.Error("heard what was not there")
	}
	post(l, "secret", body)
	if err := l.Await(t.Context(), "push", "kiln-janitor/canary", digest, 1); err != nil {
		t.Errorf("after many: %v", err)
	}
}

func FuzzEnvelope(f *testing.F) {
	f.Add(event("push", manifest, "a", "t", "x", "2026-01-02T03:04:05Z"))
	f.Add(`{"events":[{}]}`)
	f.Add("{")
	f.Fuzz(func(t *testing.T, body string) {
		l, k := listener()
		if got := post(l, "secret", body); got != http.StatusOK && got != http.StatusBadRequest && got != http.StatusRequestEntityTooLarge {
			t.Errorf("%d", got)
		}
		for _, u := range k.uses {
			if u.Repository == "" || u.Name == "" || u.At.After(now) {
				t.Errorf("%+v", u)
			}
		}
	})
}
