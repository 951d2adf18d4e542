package storage_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
	"github.com/kilnbuild/kiln/services/janitor/internal/storage"
)

// A tag that is moved to a new manifest while its repository is read leads to that manifest,
// and not to nothing: what leads to nothing is removed.
func TestATagThatIsMovedMeanwhileIsNotLost(t *testing.T) {
	l := laid{t, t.TempDir()}
	for i := range 300 { // so that a look takes some time
		l.image("r", l.blob(fmt.Sprint("layer", i)))
	}
	var done atomic.Bool
	pushed := make(chan struct{})
	go func() {
		defer close(pushed)
		for n := 0; !done.Load(); n++ {
			l.renamed(l.tag("r", "next", l.image("r", l.blob(fmt.Sprint("moved", n)))), "r", "moves")
			time.Sleep(time.Millisecond)
		}
	}()
	s := storage.New(l.root)
	for until := time.Now().Add(2 * time.Second); time.Now().Before(until) && !t.Failed(); {
		for _, tag := range l.inventory(s).Repositories[0].Tags {
			if tag.Lost != "" { // with neither it is about to be written
				t.Errorf("%+v", tag)
			}
		}
	}
	done.Store(true)
	<-pushed
}

// renamed moves a tag as the registry does: by a rename of its link.
func (l laid) renamed(link, repository, tag string) {
	to := filepath.Join(l.tagDir(repository, tag), "current", "link")
	if err := os.MkdirAll(filepath.Dir(to), 0o750); err != nil {
		l.t.Error(err)
	}
	if err := os.Rename(link, to); err != nil {
		l.t.Error(err)
	}
}

// A tag that leads nowhere goes as it was found, and not when it was moved, or what it leads
// to was pushed.
func TestTagsThatLeadNowhereGo(t *testing.T) {
	none := content.Digest("sha256:" + hexOf("pushed later"))
	for name, c := range map[string]struct {
		link  string // of the tag
		then  func(l laid)
		taken bool
	}{
		"as it was":           {string(none), func(laid) {}, true},
		"an empty link":       {"", func(laid) {}, true},
		"moved":               {string(none), func(l laid) { time.Sleep(10 * time.Millisecond); l.tag("r", "t", none) }, false},
		"to another manifest": {string(none), func(l laid) { l.tag("r", "t", l.image("r")) }, false},
		"its manifest came":   {string(none), func(l laid) { l.revision("r", "pushed later") }, false},
		"it is gone":          {string(none), func(l laid) { must(l.t, os.RemoveAll(l.tagDir("r", "t"))) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			l := laid{t, t.TempDir()}
			s := storage.New(l.root)
			l.tag("r", "t", content.Digest(c.link))
			tags := l.inventory(s).Repositories[0].Tags
			if len(tags) != 1 || tags[0].Digest != "" || string(tags[0].Lost) != c.link {
				t.Fatalf("%+v", tags)
			}
			q, err := s.Begin(quarantine.Head{Run: "one"})
			must(t, err)
			defer func() { must(t, q.Close()) }()
			c.then(l)
			taken, err := q.Tag("r", tags[0])
			must(t, err)
			_, err = os.Stat(filepath.Join(l.tagDir("r", "t"), "current", "link"))
			if taken != c.taken || os.IsNotExist(err) != c.taken {
				t.Errorf("taken: %t; its link: %v", taken, err)
			}
		})
	}
}

func (l laid) tagDir(repository, tag string) string {
	return filepath.Join(l.root, "docker/registry/v2/repositories", repository, "_manifests/tags", tag)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
