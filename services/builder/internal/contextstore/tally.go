package contextstore

// tally counts what contexts use on disk: all together, and each project by itself.
// What contexts share counts once.
type tally struct {
	share
	cost   fileCost
	owners map[string]*share
}

// share is the files that have each content, and the bytes of contents and manifests.
type share struct {
	files map[Digest]int32
	bytes int64
}

func newTally(cost fileCost) *tally {
	return &tally{cost: cost, share: share{files: make(map[Digest]int32)}, owners: make(map[string]*share)}
}

// add counts a context of some projects.
func (t *tally) add(m manifest, size int64, owners []string) {
	t.share.add(m, size, t.cost)
	for _, name := range owners {
		own := t.owners[name]
		if own == nil {
			own = &share{files: make(map[Digest]int32)}
			t.owners[name] = own
		}
		own.add(m, size, t.cost)
	}
}

// remove takes a context from some projects; left reports whether others still have it.
func (t *tally) remove(m manifest, size int64, owners []string, left bool) {
	if !left {
		t.share.remove(m, size, t.cost)
	}
	for _, name := range owners {
		if own := t.owners[name]; own != nil {
			own.remove(m, size, t.cost)
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

func (s *share) add(m manifest, size int64, cost fileCost) {
	s.bytes += size
	for i := range m.entries {
		e := &m.entries[i]
		if !e.Mode.IsRegular() {
			continue
		}
		if s.files[e.Digest]++; s.files[e.Digest] == 1 {
			s.bytes += cost.content(e.Size)
		}
	}
}

func (s *share) remove(m manifest, size int64, cost fileCost) {
	s.bytes -= size
	for i := range m.entries {
		e := &m.entries[i]
		if !e.Mode.IsRegular() {
			continue
		}
		if s.files[e.Digest]--; s.files[e.Digest] == 0 {
			delete(s.files, e.Digest)
			s.bytes -= cost.content(e.Size)
		}
	}
}

// fileCost is the least that a file counts in a quota, in bytes: the share of the file
// system that one of its inodes stands for. So a quota of bytes bounds the files, too.
type fileCost int64

// content returns the bytes that a content counts: whole blocks, as a disk gives them, and
// something to its name. Else a quota lets small files fill the disk.
func (c fileCost) content(size int64) int64 {
	const block = 4096
	return max(1, (size+block-1)/block, int64(c)/block) * block
}

// manifest returns the bytes that a manifest counts, with the file that names its project.
func (c fileCost) manifest(size int64) int64 { return max(size, int64(c)) + int64(c) }
