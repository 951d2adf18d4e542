// Package notify receives the notifications of a registry (distribution, "Notifications"):
// when what was pushed and pulled. Each is kept before the registry gets its answer; then
// one that comes again, late or in another order does no harm.
package notify

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/lastuse"
)

// Store keeps uses.
type Store interface {
	RecordUses(ctx context.Context, uses []lastuse.Use) (news int, err error)
}

// Metrics counts notifications.
type Metrics interface {
	// Notified counts events by what became of them: "kept", "own", "other", "malformed",
	// "denied", "busy" or "failed".
	Notified(ctx context.Context, outcome string, n int)
}

// Options is what a listener is made of.
type Options struct {
	Store   Store
	Metrics Metrics
	Log     *slog.Logger
	// Secret is what the registry shows as "Authorization: Bearer …".
	Secret string
	// UserAgent begins that of the janitor's own requests, which are no uses.
	UserAgent string
	Now       func() time.Time // that ages are counted to
}

// Listener receives notifications over HTTP.
type Listener struct {
	Options
	secret [sha256.Size]byte
	slots  chan struct{}

	mu      sync.Mutex
	awaited map[string]*waiting // by repository and digest
	blobs   map[blob]time.Time  // when the last pull was kept of each
}

// New returns a listener.
func New(opts Options) *Listener {
	return &Listener{Options: opts, secret: sha256.Sum256([]byte(opts.Secret)), slots: make(chan struct{}, atOnce), awaited: map[string]*waiting{}, blobs: map[blob]time.Time{}}
}

// Bounds of what is taken.
const (
	atOnce    = 16
	maxBody   = 4 << 20
	waitFor   = 5 * time.Second
	storeTime = 10 * time.Second
)

// envelope is what the registry sends (distribution v3, notifications/event.go).
type envelope struct {
	Events []event `json:"events"`
}

type event struct {
	ID        string    `json:"id"`
	Timestamp time.Time `json:"timestamp"`
	Action    string    `json:"action"`
	Target    struct {
		MediaType  content.MediaType `json:"mediaType"`
		Digest     content.Digest    `json:"digest"`
		Repository string            `json:"repository"`
		Tag        string            `json:"tag"`
	} `json:"target"`
	Request struct {
		UserAgent string `json:"useragent"`
	} `json:"request"`
}

// ServeHTTP implements http.Handler.
func (l *Listener) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	refuse := func(outcome, message string, status int) {
		l.Metrics.Notified(ctx, outcome, 1)
		http.Error(w, message, status)
	}
	token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	shown := sha256.Sum256([]byte(token))
	switch {
	case !bearer || subtle.ConstantTimeCompare(shown[:], l.secret[:]) != 1:
		refuse("denied", "the registry has to show the secret of notifications.secret_file as Authorization: Bearer", http.StatusUnauthorized)
		return
	case r.Method != http.MethodPost:
		refuse("malformed", "notifications come by POST", http.StatusMethodNotAllowed)
		return
	}
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
	case <-time.After(waitFor):
		w.Header().Set("Retry-After", "1")
		refuse("busy", "too many at once: send it again", http.StatusTooManyRequests)
		return
	case <-ctx.Done():
		return
	}
	var in envelope
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&in); err != nil {
		if _, large := errors.AsType[*http.MaxBytesError](err); large {
			refuse("malformed", "the envelope is too large", http.StatusRequestEntityTooLarge)
			return
		}
		refuse("malformed", "this is no envelope of registry events", http.StatusBadRequest)
		return
	}
	if err := l.keep(ctx, in.Events); err != nil {
		l.Log.ErrorContext(ctx, "notifications of the registry cannot be kept; it sends them again", "error", err)
		refuse("failed", "they cannot be kept now: send them again", http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusOK)
}

// keep keeps what events tell of uses.
func (l *Listener) keep(ctx context.Context, events []event) error {
	var uses []lastuse.Use
	for _, e := range events {
		outcome := "kept"
		switch {
		case !e.whole():
			outcome = "malformed"
		case strings.HasPrefix(e.Request.UserAgent, l.UserAgent):
			outcome = "own"
		case e.Action != "pull" && e.Action != "push" && e.Action != "mount":
			outcome = "other"
		default:
			uses = append(uses, l.usesOf(e)...)
		}
		l.Metrics.Notified(ctx, outcome, 1)
		l.hear(e)
	}
	if len(uses) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTime)
	defer cancel()
	_, err := l.Store.RecordUses(ctx, uses)
	if err != nil {
		l.forget(events)
	}
	return err
}

// forget has the pulls of blobs be news again that could not be kept: the registry sends them again.
func (l *Listener) forget(events []event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range events {
		delete(l.blobs, blob{e.Target.Repository, content.NewBlob(e.Target.Digest, 0)})
	}
}

// longest bounds the names of repositories and tags (distribution/reference).
const longest = 255

func (e event) whole() bool {
	return e.Target.Repository != "" && len(e.Target.Repository) <= longest && len(e.Target.Tag) <= longest &&
		(e.Target.Digest == "" || e.Target.Digest.Valid()) && (e.Target.Digest != "" || e.Target.Tag != "") && e.Action != ""
}

// usesOf are the uses that an event tells of: of a manifest, or of a blob that was pulled, asked for
// or mounted, as clients do that have its manifest.
func (l *Listener) usesOf(e event) (uses []lastuse.Use) {
	at, heard := l.when(e.Timestamp), l.Now()
	use := func(name lastuse.Name) lastuse.Use {
		return lastuse.Use{Repository: e.Target.Repository, Name: name, Push: e.Action == "push", At: at, Heard: heard}
	}
	if !e.Target.MediaType.IsManifest() && e.Target.Tag == "" {
		if e.Action == "push" || !l.news(e, heard) {
			return nil
		}
		return []lastuse.Use{{Repository: e.Target.Repository, Name: lastuse.ByBlob(e.Target.Digest), At: at, Heard: heard}}
	}
	if e.Target.Digest != "" {
		uses = append(uses, use(lastuse.ByDigest(e.Target.Digest)))
	}
	if e.Target.Tag != "" {
		uses = append(uses, use(lastuse.ByTag(e.Target.Tag)))
	}
	return uses
}

// Pulls of a blob are kept once in so long: an image that many pull has many blobs.
const (
	blobEvery = 10 * time.Second
	maxBlobs  = 100_000 // whose last pulls are remembered for that
)

// news reports whether the pull of a blob is to be kept.
func (l *Listener) news(e event, now time.Time) bool {
	key := blob{e.Target.Repository, content.NewBlob(e.Target.Digest, 0)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if last, known := l.blobs[key]; known && now.Sub(last) < blobEvery && !now.Before(last) {
		return false
	}
	if len(l.blobs) >= maxBlobs {
		clear(l.blobs)
	}
	l.blobs[key] = now
	return true
}

// blob is one of a repository.
type blob struct {
	repository string
	content.Blob
}

// when is the time of an event by the clock that ages are counted to. One from the future
// is of now: a use may not prolong life beyond what it is.
func (l *Listener) when(at time.Time) time.Time {
	ago := max(0, time.Since(at))
	return l.Now().Add(-ago)
}

// hear tells who waits for a notification of the janitor's own, or will.
func (l *Listener) hear(e event) {
	if !strings.HasPrefix(e.Target.Repository, "kiln-janitor/") {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.await(awaitedKey(e.Action, e.Target.Repository, e.Target.Digest))
	if w != nil && !w.ids[e.ID] && len(w.ids) < maxAwaited {
		w.ids[e.ID] = true // one that is sent again is no other
		close(w.more)
		w.more = make(chan struct{})
	}
}

// waiting is notifications that are awaited, or were heard before.
type waiting struct {
	ids  map[string]bool
	more chan struct{} // closed when there are more
}

func awaitedKey(action, repository string, digest content.Digest) string {
	return action + " " + repository + "@" + string(digest)
}

// await is what is known of some notifications; nil when too much is. mu is held.
func (l *Listener) await(key string) *waiting {
	if l.awaited[key] != nil {
		return l.awaited[key]
	}
	if len(l.awaited) >= maxAwaited { // what nobody came for
		maps.DeleteFunc(l.awaited, func(_ string, w *waiting) bool { return len(w.ids) > 0 })
	}
	if len(l.awaited) < maxAwaited {
		l.awaited[key] = &waiting{ids: map[string]bool{}, more: make(chan struct{})}
	}
	return l.awaited[key]
}

// maxAwaited bounds what is remembered of the janitor's own pushes and pulls.
const maxAwaited = 100

// Await implements canary.Ears.
func (l *Listener) Await(ctx context.Context, action, repository string, digest content.Digest, count int) error {
	key := awaitedKey(action, repository, digest)
	defer func() {
		l.mu.Lock()
		delete(l.awaited, key)
		l.mu.Unlock()
	}()
	for {
		l.mu.Lock()
		w := l.await(key)
		if w == nil {
			l.mu.Unlock()
			return errors.New("too many notifications are awaited")
		}
		heard, more := len(w.ids), w.more
		l.mu.Unlock()
		if heard >= count {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
