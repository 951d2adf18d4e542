package usage

import (
	"context"
	"encoding/base64"
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Query asks for a page of the repositories.
type Query struct {
	// Repositories are names, or prefixes with "*" at the end. Empty: all.
	Repositories []string
	// Size is the most repositories of a page, more than 0.
	Size int
	// Token is Page.Next of the page before. Empty: the first page of a new survey.
	Token string
}

// Page is a page of repositories, with the snapshot that it is of.
type Page struct {
	Snapshot
	Next string // token of the next page; empty on the last one
}

// Page answers a query. The first page looks at the registry as it is now; those
// that follow are of the same look.
func (s *Surveyor) Page(ctx context.Context, q Query) (Page, error) {
	var at cursor
	var snapshot Snapshot
	var err error
	if q.Token == "" {
		snapshot, err = s.Survey(ctx)
	} else if at, err = parseCursor(q.Token, q.Repositories); err == nil {
		snapshot, err = s.recall(at.taken)
	}
	if err != nil {
		return Page{}, err
	}
	return page(snapshot, q, at.offset)
}

// recall is the snapshot of a page token.
func (s *Surveyor) recall(taken int64) (Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, snapshot := range s.recent {
		if snapshot.Time.UnixNano() == taken && time.Since(snapshot.Time) < keptFor {
			return snapshot, nil
		}
	}
	return Snapshot{}, badToken("its pages are no longer kept")
}

// page cuts a page out of a snapshot.
func page(snapshot Snapshot, q Query, offset int) (Page, error) {
	var chosen []RepositoryUsage
	found := map[string]bool{}
	for _, r := range snapshot.Repositories {
		if matches(q.Repositories, r.Name) {
			chosen = append(chosen, r)
			found[r.Name] = true
		}
	}
	for _, name := range q.Repositories {
		if !strings.HasSuffix(name, "*") && !found[name] {
			return Page{}, fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("there is no repository %q in the registry", name),
				"leave repositories out to see them all")
		}
	}
	start := min(offset, len(chosen))
	end := min(start+q.Size, len(chosen))
	p := Page{Snapshot: snapshot}
	p.Repositories = chosen[start:end]
	if end < len(chosen) {
		p.Next = cursor{taken: snapshot.Time.UnixNano(), offset: end}.token(q.Repositories)
	}
	return p, nil
}

// cursor is what a page token holds: the time of the snapshot, and how many
// repositories came before.
type cursor struct {
	taken  int64
	offset int
}

func (c cursor) token(patterns []string) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d.%d.%d", c.taken, c.offset, sum(patterns)))
}

func parseCursor(token string, patterns []string) (cursor, error) {
	text, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return cursor{}, badToken("it is none that the janitor gave")
	}
	var c cursor
	var of uint32
	if _, err := fmt.Sscanf(string(text), "%d.%d.%d", &c.taken, &c.offset, &of); err != nil || c.offset < 0 {
		return cursor{}, badToken("it is none that the janitor gave")
	}
	if of != sum(patterns) {
		return cursor{}, badToken("it belongs to a request with other repositories")
	}
	return c, nil
}

// sum tells the requests that tokens belong to apart.
func sum(patterns []string) uint32 {
	h := fnv.New32a()
	for _, p := range patterns {
		_, _ = h.Write([]byte(p + "\n")) // Never fails.
	}
	return h.Sum32()
}

func badToken(why string) error {
	return fault.Invalid("page_token", "", why, "ask for the first page again, without page_token")
}
