package contextstore

// tally counts what contexts use on disk: all together, and each project by itself.
// What contexts share counts once.
type tally struct {
	share
	owners map[string]*share
}

// share is the files that have each content, and the bytes of contents and manifests.
type share struct {
	files map[Digest]int32
	bytes int64
}

func newTally() *tally {
	return &tally{share: share{files: make(map[Digest]int32)}, owners: make(map[string]*share)}
}

// add counts a context of some projects.
func (t *tally) add(m manifest, size int64, owners []string) {
	t.share.add(m, size)
	for _, name := range owners {
		own := t.owners[name]
		if own == nil {
			own = &share{files: make(map[Digest]int32)}
			t.owners[name] = own
		}
		own.add(m, size)
	}
}

// remove takes a context from some projects; left reports whether others still have it.
func (t *tally) remove(m manifest, size int64, owners []string, left bool) {
	if !left {
		t.share.remove(m, size)
	}
	for _, name := range owners {
		if own := t.owners[name]; own != nil {
			own.remove(m, size)
		}
	}
}

// projects returns the bytes of each project.
func (t *tally) projects() map[string]int64 {
	all := make(map[string]int64, len(t.owners))
	for name, own := range t.owners {
		all[name] = own.bytes
	}
	return all
}

func (s *share) add(m manifest, size int64) {
	s.bytes += size
	for i := range m.entries {
		e := &m.entries[i]
		if !e.Mode.IsRegular() {
			continue
		}
		if s.files[e.Digest]++; s.files[e.Digest] == 1 {
			s.bytes += blocks(e.Size)
		}
	}
}

func (s *share) remove(m manifest, size int64) {
	s.bytes -= size
	for i := range m.entries {
		e := &m.entries[i]
		if !e.Mode.IsRegular() {
			continue
		}
		if s.files[e.Digest]--; s.files[e.Digest] == 0 {
			delete(s.files, e.Digest)
			s.bytes -= blocks(e.Size)
		}
	}
}

// blocks returns the bytes that a content takes on a disk, which gives whole blocks, and
// something to its name: else a quota lets small files fill the disk.
func blocks(size int64) int64 {
	const block = 4096
	return max(1, (size+block-1)/block) * block
}
