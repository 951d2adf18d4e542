// Package lastuse says when manifests were last used, as far as it was told: by the
// registry's notifications, and by builds.
package lastuse

import (
	"iter"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

// Use is one use of a manifest.
type Use struct {
	Repository string
	Name       Name
	Push       bool      // else a pull
	At         time.Time // by the clock of who tells of it
	// Heard is when the janitor was told of it, by its own clock. Zero: nobody told it.
	Heard time.Time
}

// Name is the digest of a manifest, a tag with ":" before it, or the digest of a blob with "/" before
// it.
type Name string

// ByDigest names a manifest.
func ByDigest(d content.Digest) Name { return Name(d) }

// ByTag names what a tag holds.
func ByTag(tag string) Name { return Name(":" + tag) }

// ByBlob names a blob, which is used as a part of manifests, or alone.
func ByBlob(d content.Digest) Name { return blobMark + Name(d) }

const blobMark = "/"

// Last is when something was last pushed and pulled. Zero: not known of.
type Last struct{ Pushed, Pulled time.Time }

// Absence is a time in which nobody listened.
type Absence struct {
	Until time.Time
	For   time.Duration
}

// Book is all that is known at one time. It implements plan.Uses.
type Book struct {
	uses     map[string]map[Name]Last
	absences []Absence
}

// NewBook returns an empty book.
func NewBook(absences []Absence) *Book {
	return &Book{uses: map[string]map[Name]Last{}, absences: absences}
}

// Add notes when something was last used.
func (b *Book) Add(repository string, name Name, last Last) {
	of := b.uses[repository]
	if of == nil {
		of = map[Name]Last{}
		b.uses[repository] = of
	}
	of[name] = later(of[name], last)
}

func later(a, b Last) Last {
	if b.Pushed.After(a.Pushed) {
		a.Pushed = b.Pushed
	}
	if b.Pulled.After(a.Pulled) {
		a.Pulled = b.Pulled
	}
	return a
}

// Last implements plan.Uses. What is known of a tag is said of the manifest that it holds.
func (b *Book) Last(repository string, digest content.Digest, tags []string) (pushed, pulled time.Time) {
	of := b.uses[repository]
	if len(of) == 0 {
		return pushed, pulled
	}
	last := later(of[ByDigest(digest)], of[ByBlob(digest)])
	for _, tag := range tags {
		last = later(last, of[ByTag(tag)])
	}
	return last.Pushed, last.Pulled
}

// Pulls implements plan.Uses.
func (b *Book) Pulls(repository string) iter.Seq2[content.Digest, time.Time] {
	return func(yield func(content.Digest, time.Time) bool) {
		for name, last := range b.uses[repository] {
			digest, is := strings.CutPrefix(string(name), blobMark)
			if is && !last.Pulled.IsZero() && !yield(content.Digest(digest), last.Pulled) {
				return
			}
		}
	}
}

// Used are the manifests and tags of a repository that are known to have been used.
func (b *Book) Used(repository string) iter.Seq[Name] {
	return func(yield func(Name) bool) {
		for name := range b.uses[repository] {
			if !strings.HasPrefix(string(name), blobMark) && !yield(name) {
				return
			}
		}
	}
}

// Tag is the tag that a name is of, if it is one.
func (n Name) Tag() (string, bool) { return strings.CutPrefix(string(n), ":") }

// Away implements plan.Uses.
func (b *Book) Away(since time.Time) (sum time.Duration) {
	for _, a := range b.absences {
		from := a.Until.Add(-a.For)
		if since.After(from) {
			from = since
		}
		sum += max(0, a.Until.Sub(from))
	}
	return sum
}
