package enforce_test

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/lastuse"
)

// doc is a manifest as the model knows it.
type doc struct {
	repository string
	digest     string
	layers     []string // digests as the manifest names them
	children   []string
	subject    string
	unread     bool
	pushed     time.Time
	pulled     time.Time
}

// world is a registry on a disk, written as distribution writes it, and what a slow model knows of it.
type world struct {
	disk
	rand *rand.Rand
	at   time.Time // by the clock that ages are counted to

	docs   map[string]*doc              // by repository and digest
	tags   map[string]map[string]string // by repository: digests
	blobs  map[string]time.Time         // last pulls and pushes, by repository and digest as it is stored
	stored map[string]string            // digests of sha256 by those of sha512
	use    func(repository string, name lastuse.Name)
	n      int

	mu  sync.Mutex // guards log: runs tell what goes from another goroutine
	log []string
}

var repositories = []string{"cache/a", "cache/b", "app", "mirror"}

func newWorld(d disk, seed uint64) *world {
	return &world{
		disk: d, rand: rand.New(rand.NewPCG(seed, 1)), at: time.Now(), docs: map[string]*doc{}, tags: map[string]map[string]string{},
		blobs: map[string]time.Time{}, stored: map[string]string{},
	}
}

func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, w.at.Format("02T15:04 ")+fmt.Sprintf(format, args...))
}

func pick[T any](w *world, all []T) T { return all[w.rand.IntN(len(all))] }

func (w *world) link(repository, digest string) string {
	algorithm, h, _ := strings.Cut(digest, ":")
	return w.path("repositories", repository, "_layers", algorithm, h, "link")
}

func (w *world) data(digest string) string {
	h := strings.TrimPrefix(digest, "sha256:")
	return w.path("blobs/sha256", h[:2], h, "data")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// upload uploads a blob unless the registry says that the repository has it. It returns the digest by
// which a manifest names it.
func (w *world) upload(repository, text string, long bool) string {
	short, wide := sha256.Sum256([]byte(text)), sha512.Sum512([]byte(text))
	digest := "sha256:" + hex.EncodeToString(short[:])
	name := digest
	if long {
		name = "sha512:" + hex.EncodeToString(wide[:])
		w.stored[name] = digest
	}
	if !exists(w.data(digest)) {
		w.put(w.at, text, "blobs/sha256", digest[7:9], digest[7:], "data")
	}
	if exists(w.link(repository, name)) && exists(w.link(repository, digest)) {
		w.use(repository, lastuse.ByBlob(content.Digest(digest))) // a HEAD tells that it is there
	} else {
		for _, one := range []string{digest, name} {
			algorithm, h, _ := strings.Cut(one, ":")
			w.put(w.at, digest, "repositories", repository, "_layers", algorithm, h, "link")
		}
	}
	w.blobs[repository+"@"+digest] = w.at
	return name
}

// store stores a manifest under a tag, or none.
func (w *world) store(d *doc, text, tag string) string {
	sum := sha256.Sum256([]byte(text))
	d.digest, d.pushed = "sha256:"+hex.EncodeToString(sum[:]), w.at
	if old := w.docs[d.repository+"@"+d.digest]; old != nil {
		d.pulled = old.pulled
	}
	w.put(w.at, text, "blobs/sha256", d.digest[7:9], d.digest[7:], "data")
	w.put(w.at, d.digest, "repositories", d.repository, "_manifests/revisions/sha256", d.digest[7:], "link")
	w.docs[d.repository+"@"+d.digest] = d
	if tag != "" {
		w.tag(d.repository, tag, d.digest)
	}
	w.note("push %s@%.14s:%s layers %d children %d subject %.14s", d.repository, d.digest, tag, len(d.layers), len(d.children), d.subject)
	return d.digest
}

// tag moves a tag to a manifest, which is to push the manifest again.
func (w *world) tag(repository, tag, digest string) {
	w.put(w.at, digest, "repositories", repository, "_manifests/revisions/sha256", digest[7:], "link")
	w.put(w.at, digest, "repositories", repository, "_manifests/tags", tag, "index/sha256", digest[7:], "link")
	w.put(w.at, digest, "repositories", repository, "_manifests/tags", tag, "current/link")
	if w.tags[repository] == nil {
		w.tags[repository] = map[string]string{}
	}
	w.tags[repository][tag] = digest
	w.docs[repository+"@"+digest].pushed = w.at
}

// in are the manifests of a repository, in order.
func (w *world) in(repository string) (all []*doc) {
	for _, d := range w.docs {
		if d.repository == repository {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b *doc) int { return strings.Compare(a.digest, b.digest) })
	return all
}

// forget forgets manifests and tags that a run has removed.
func (w *world) forget() {
	for key, d := range w.docs {
		if !w.has(d.repository, d.digest) {
			delete(w.docs, key)
		}
	}
	for repository, tags := range w.tags {
		for tag, digest := range tags {
			if w.docs[repository+"@"+digest] == nil {
				delete(tags, tag)
			}
		}
	}
}

// image pushes an image, of layers in each form that the registry takes.
func (w *world) image(repository, tag string) {
	d := &doc{repository: repository}
	var list []string
	for range w.rand.IntN(3) {
		long := w.rand.IntN(3) == 0
		name := w.upload(repository, fmt.Sprint("layer ", w.rand.IntN(6)), long)
		d.layers = append(d.layers, name)
		more := pick(w, []string{"", `,"data":"eA=="`, `,"urls":["https://example.org"]`})
		list = append(list, fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d%s}`, name, w.rand.IntN(9)-1, more))
	}
	w.n++
	config := w.upload(repository, fmt.Sprintf(`{"n":%d}`, w.n%40), w.rand.IntN(4) == 0)
	d.layers = append(d.layers, config)
	layers := "[" + strings.Join(list, ",") + "]"
	if len(list) == 0 && w.rand.IntN(2) == 0 {
		layers = "null"
	}
	subject := ""
	if all := w.in(repository); len(all) > 0 && w.rand.IntN(4) == 0 {
		d.subject = pick(w, all).digest
		subject = fmt.Sprintf(`,"subject":{"digest":%q,"size":3}`, d.subject)
	} else if w.rand.IntN(4) == 0 {
		subject = `,"subject":{}`
	}
	text := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":%q,"size":7},"layers":%s%s}`, config, layers, subject)
	if w.rand.IntN(8) == 0 {
		d.subject = ""
		list = nil
		for _, name := range d.layers {
			list = append(list, fmt.Sprintf(`{"blobSum":%q}`, name))
		}
		text = `{"schemaVersion":1,"name":"x","tag":"y","fsLayers":[` + strings.Join(list, ",") + `],"history":[]}`
	}
	w.store(d, text, tag)
}

// index pushes an index of manifests of a repository, of types that are right or not.
func (w *world) index(repository, tag string) {
	var children []*doc
	if all := w.in(repository); len(all) > 0 {
		for range w.rand.IntN(3) {
			children = append(children, pick(w, all))
		}
	}
	w.indexOf(repository, tag, children...)
}

// indexOf pushes an index of some manifests.
func (w *world) indexOf(repository, tag string, children ...*doc) {
	d := &doc{repository: repository}
	var list []string
	for _, one := range children {
		kind := pick(w, []string{
			"application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json", "application/x", "",
			"application/vnd.docker.distribution.manifest.v1+json",
		})
		d.children = append(d.children, one.digest)
		list = append(list, fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":3}`, kind, one.digest))
	}
	text := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[` + strings.Join(list, ",") + `]}`
	if len(list) == 0 {
		text = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":null}`
	}
	w.store(d, text, tag)
}

// sign pushes a signature of a manifest, under cosign's tag.
func (w *world) sign(repository string) {
	if all := w.in(repository); len(all) > 0 {
		subject := pick(w, all).digest
		w.n++
		d := &doc{repository: repository}
		d.layers = []string{w.upload(repository, fmt.Sprintf(`{"sig":%d}`, w.n%40), false)}
		text := fmt.Sprintf(`{"schemaVersion":2,"layers":[{"digest":%q,"size":5}],"annotations":{"of":%q}}`, d.layers[0], subject)
		w.store(d, text, "sha256-"+subject[7:]+".sig")
	}
}

// delete deletes a tag or a manifest by the API.
func (w *world) delete(repository string) {
	all := w.in(repository)
	if len(all) == 0 {
		return
	}
	d := pick(w, all)
	for tag, digest := range w.tags[repository] {
		if digest == d.digest {
			delete(w.tags[repository], tag)
			_ = os.RemoveAll(w.path("repositories", repository, "_manifests/tags", tag))
		}
	}
	if w.rand.IntN(3) == 0 && !w.named(d) { // else indexes of the test would not be whole
		_ = os.Remove(w.revision(repository, d.digest))
		delete(w.docs, repository+"@"+d.digest)
	}
	w.note("delete %s@%.14s", repository, d.digest)
}

func (w *world) named(d *doc) bool {
	return slices.ContainsFunc(w.in(d.repository), func(other *doc) bool { return slices.Contains(other.children, d.digest) })
}

// alias makes a link to a repository, by which a rule protects it.
func (w *world) alias() {
	to := w.path("repositories/prod")
	if !exists(to) && exists(w.path("repositories/mirror")) {
		_ = os.MkdirAll(filepath.Dir(to), 0o750)
		_ = os.Symlink(w.path("repositories/mirror"), to)
		w.note("prod is a link to mirror")
	}
}
