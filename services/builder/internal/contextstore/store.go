// Package contextstore keeps build contexts on disk, by their content.
//
// Each file's content is a blob, stored once however many contexts hold it; each
// context is a manifest, which lists its files in one canonical form, and whose
// SHA-256 is the context's digest. An archive's names never become names on this
// disk: blobs are named by their digests, so there is nothing to escape to.
//
//	blobs/sha256/ab/abcd…   contents
//	contexts/abcd…          manifests; their time is that of the last use
//	owners/abcd….web        empty: the context is of the project "web"
//	fetched/abcd…           what an archive of a project was, by its URL or its digest
//	incoming/…              what is under way: archives that are being read, and the
//	                        mark of a sweep
//
// A context is complete or absent. Its blobs get their names before its manifest
// does, and while that goes on there is something in incoming, by which Open knows
// that a killed process may have left blobs of no context. Blobs are not synced
// one by one, for that costs more than writing them: after a power failure one may
// be damaged. So none is served unchecked: a reader gets an error in the place of
// the last bytes when content is not what its name says, and the context is then
// gone, to be sent again.
package contextstore

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/services/builder/internal/quota"
)

// Limits are the bounds of a store and of each context in it. All but FileBytes must be set.
type Limits struct {
	KeepAge      time.Duration // a context that was not used for longer goes
	KeepBytes    int64         // of all contexts together, those that come included; 0: no bound
	ProjectBytes int64         // of one project's, likewise
	FileBytes    int64         // that each file counts at least, for inodes run out as bytes do
	MaxBytes     int64         // of one archive once decompressed, and of its files
	MaxEntries   int           // of one archive
	MaxRatio     int           // decompressed to compressed bytes, past 64 MiB
	MaxDepth     int           // levels of directories
	MaxPathBytes int           // of one path, and of a symbolic link's target
	FetchTimeout time.Duration // for one archive, from the request to its last byte
}

// Info is what is known of a stored context.
type Info struct {
	Digest  string    // "sha256:…" of its manifest
	Bytes   int64     // of its files
	Files   int64     // regular files
	Expires time.Time // when it goes if it is not used again
}

// Store is a store of contexts. One process at a time may use its directory.
type Store struct {
	root   *os.Root
	limits Limits
	log    *slog.Logger
	now    func() time.Time
	ages   func() bool // whether ages count now

	change sync.Mutex // held to add or remove blobs and manifests under their final names

	recall     sync.Mutex // held to add or remove what is remembered of archives
	remembered int        // how many, at most

	cost    fileCost
	account *quota.Account // of bytes of blobs and manifests, by project
	slack   int64          // bytes that are freed beyond those that are needed

	mu       sync.Mutex
	contexts map[Digest]*kept
	counted  bool // whether the account was counted since Open
	dirty    bool // there may be blobs of no context
}

// kept is a context in the store.
type kept struct {
	totals
	size   int64 // bytes that its manifest counts
	used   time.Time
	open   int             // trees, and pins of builds
	broken bool            // content is missing or damaged: it goes with the next sweep
	owners map[string]bool // projects; only they see it
}

// Directories of a store.
const (
	blobDir     = "blobs/sha256"
	contextDir  = "contexts"
	ownersDir   = "owners"
	fetchedDir  = "fetched"
	incomingDir = "incoming"
)

// Open opens the store in a directory, which it makes if it is not there, and
// removes what an earlier process left half done. The store must be closed.
func Open(dir string, limits Limits, log *slog.Logger, now func() time.Time) (_ *Store, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, onDisk(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, onDisk(err)
	}
	bounds := quota.Limits{All: limits.KeepBytes, Each: limits.ProjectBytes}
	s := &Store{
		root: root, limits: limits, log: log, now: now, ages: func() bool { return true }, contexts: make(map[Digest]*kept),
		cost: fileCost(limits.FileBytes), account: quota.New(bounds), slack: bounds.Slack(),
	}
	for _, step := range []func() error{s.makeDirs, s.load, s.loadOwners, s.recover, s.forgetFetched} {
		if err := step(); err != nil {
			return nil, errors.Join(err, root.Close())
		}
	}
	return s, nil
}

// Ages has nothing go by its age while trusted says false, as when the host's clock has
// jumped. It is called before the store is used.
func (s *Store) Ages(trusted func() bool) { s.ages = trusted }

// Close gives back what the store holds. Trees must be closed before.
func (s *Store) Close() error { return s.root.Close() }

func (s *Store) makeDirs() error {
	for _, dir := range []string{blobDir, contextDir, ownersDir, fetchedDir, incomingDir} {
		if err := s.root.MkdirAll(dir, 0o700); err != nil {
			return onDisk(err)
		}
	}
	for i := range 256 {
		if err := s.root.Mkdir(fmt.Sprintf("%s/%02x", blobDir, i), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return onDisk(err)
		}
	}
	return nil
}

// load fills the index from the manifests' first records.
func (s *Store) load() error {
	names, err := s.list(contextDir)
	if err != nil {
		return err
	}
	for _, name := range names {
		digest, ok := digestOfHex(name)
		if !ok {
			continue
		}
		path := manifestPath(digest)
		info, err := s.root.Lstat(path)
		if err != nil {
			return onDisk(err)
		}
		c := &kept{size: s.cost.manifest(info.Size()), used: info.ModTime(), owners: make(map[string]bool)}
		if c.totals, err = s.readTotals(path); err != nil {
			s.log.Warn("a stored context cannot be read", "digest", digest.String(), "error", err)
			c.broken = true
		}
		s.contexts[digest] = c
	}
	return nil
}

// Use counts as a use of a context and says what is known of it. The error is a
// NOT_FOUND fault when the project has no such context.
func (s *Store) Use(project, digest string) (Info, error) {
	_, info, err := s.use(project, digest, 0)
	return info, err
}

// Open opens a context, which counts as a use. It and its files stay until the
// tree is closed. The error is a NOT_FOUND fault when the project has no such context.
func (s *Store) Open(project, digest string) (*Tree, error) {
	d, _, err := s.use(project, digest, 1)
	if err != nil {
		return nil, err
	}
	m, err := s.readManifest(manifestPath(d), d)
	if err != nil {
		s.unreadable(d, digest, err)
		s.letGo(d)
		return nil, absent(digest)
	}
	return &Tree{store: s, digest: d, entries: m.entries}, nil
}

// use finds a context of a project, moves its last use to now, and adds to its open
// trees.
func (s *Store) use(project, digest string, trees int) (Digest, Info, error) {
	d, err := ParseDigest(digest)
	if err != nil {
		return Digest{}, Info{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.contexts[d]
	if c == nil || c.broken || !c.owners[project] {
		return Digest{}, Info{}, absent(digest)
	}
	c.open += trees
	return d, s.touch(d, c), nil
}

// touch moves the last use of a context to now. mu is held.
func (s *Store) touch(d Digest, c *kept) Info {
	c.used = s.now()
	if err := s.root.Chtimes(manifestPath(d), c.used, c.used); err != nil {
		s.log.Warn("the use of a stored context cannot be noted", "digest", d.String(), "error", err)
	}
	return Info{Digest: d.String(), Bytes: c.bytes, Files: c.files, Expires: c.used.Add(s.limits.KeepAge)}
}

// letGo ends a use by an open tree.
func (s *Store) letGo(d Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.contexts[d]; c != nil {
		c.open--
	}
}

// unreadable notes that a context cannot be served: it is absent from now on.
func (s *Store) unreadable(d Digest, what string, err error) {
	s.log.Error("a stored context is damaged", "digest", d.String(), "content", what, "error", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.contexts[d]; c != nil {
		c.broken = true
	}
}

// list returns the names in a directory of the store.
func (s *Store) list(dir string) ([]string, error) {
	f, err := s.root.Open(dir)
	if err != nil {
		return nil, onDisk(err)
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	return names, onDisk(err)
}

// syncDir makes the names in a directory outlive a power failure.
func (s *Store) syncDir(dir string) error {
	f, err := s.root.Open(dir)
	if err != nil {
		return onDisk(err)
	}
	defer f.Close()
	return onDisk(f.Sync())
}
