// Package cache has the words of the cache manager: what a cache holds.
package cache

import (
	"cmp"
	"time"
)

// Type is what a record is, in BuildKit's words.
type Type string

// The types that are known. BuildKit calls a record without a type regular.
const (
	Regular     Type = "regular"
	SourceLocal Type = "source.local"
	GitCheckout Type = "source.git.checkout"
	CacheMount  Type = "exec.cachemount"
	Frontend    Type = "frontend"
	Internal    Type = "internal"
	LocalTag    Type = "local.tag" // Kiln's: a tag of a type=local directory.
	History     Type = "history"   // Kiln's: a build in the daemon's history.
	Uncounted   Type = "uncounted" // Kiln's: bytes of a daemon's disk that are in no record.
	Unknown     Type = "unknown"   // One that a newer daemon may have.
)

// Types are all types, in the order in which they are shown.
func Types() []Type {
	return []Type{
		Regular, SourceLocal, GitCheckout, CacheMount, Frontend, Internal, LocalTag, History, Uncounted, Unknown,
	}
}

// ParseType is the type of that name, and Unknown for any other name.
func ParseType(name string) Type {
	if name == "" {
		return Regular
	}
	for _, known := range Types() {
		if name == string(known) {
			return known
		}
	}
	return Unknown
}

// HistoryPrefix begins the ids of records of type History, before the daemon's name of the
// build.
const HistoryPrefix = "history:"

// Ref names one cache: a daemon or a type=local directory, not both.
type Ref struct {
	Daemon    string // its name
	Directory string // its path
}

// String is the daemon's name or the directory's path, for people.
func (r Ref) String() string {
	if r.Daemon != "" {
		return r.Daemon
	}
	return r.Directory
}

// Compare orders daemons by name, then directories by path.
func (r Ref) Compare(o Ref) int {
	switch {
	case r.Daemon != "" && o.Daemon != "":
		return cmp.Compare(r.Daemon, o.Daemon)
	case r.Daemon != "":
		return -1
	case o.Daemon != "":
		return 1
	}
	return cmp.Compare(r.Directory, o.Directory)
}

// Record is one thing that a cache holds.
type Record struct {
	ID          string
	Type        Type
	Description string
	Bytes       int64 // its own, without those of its parents; -1: not known
	Parents     []string
	Mutable     bool
	InUse       bool
	Hold        Hold // who holds it, if it is in use
	Shared      bool // its bytes are also those of something else: its removal frees none
	Created     time.Time
	LastUsed    time.Time // zero: never since it was made
	UsageCount  int
	Projects    []string // whose builds have used it, as far as is known, sorted
	Images      []string // that it is a part of, as far as is known, sorted
	// Revision tells what a record is now from what it is after a change, of a record that keeps its
	// id then: the digest of a tag's manifest. Empty: another content has another id.
	Revision string
	// Shrinks are the bytes that it is smaller by without a part of it, then without a
	// second, and so on, in the order in which they go. Empty: it goes whole.
	Shrinks []int64
}

// LastActive is when the record was last used, or else made.
func (r Record) LastActive() time.Time {
	if r.LastUsed.IsZero() {
		return r.Created
	}
	return r.LastUsed
}

// Hold is who holds a record that is in use.
type Hold int

// Who holds records.
const (
	HeldByBuild      Hold = iota // a build; the zero value, for listings that do not tell
	HeldWithoutBuild             // BuildKit, though no build runs
	HeldByLastUse                // nobody: it was used so shortly ago that it counts as in use
	HeldByListing                // nobody: its last use was dated by the listing
	HeldByHistory                // a person, who has pinned the build in the daemon's history
)

// Target returns the record as it was listed.
func (r Record) Target() Target { return Target{ID: r.ID, Revision: r.Revision} }

// Target names a record at one revision: a record that was changed since is another one.
type Target struct {
	ID       string
	Revision string // see Record
}

// Common are bytes that several records have in common, such as a blob that two
// tags reach. They are freed when the last of the records goes.
type Common struct {
	Bytes   int64
	Records []string // ids
}

// Disk is a file system.
type Disk struct {
	TotalBytes int64
	FreeBytes  int64 // for the service
}

// Listing is what one cache held at one time.
type Listing struct {
	Cache   Ref
	Time    time.Time // by the cache manager's clock, taken before it was asked for
	Records []Record  // in any order
	Common  []Common  // bytes that are in no single record
	Disk    *Disk     // nil: not known
	Workers []string  // ids of the daemon's
	// ClockOffset is by how much the daemon's clock is ahead of this host's. Times of records are the
	// daemon's until ByThisClock.
	ClockOffset time.Duration
	// Uncounted are bytes on the disk that are of no record: databases, downloads that
	// have not ended, what nothing reaches any more.
	Uncounted int64
	// Unreadable counts the records that the daemon has and that could not be read. They are
	// not among Records, so that nothing removes them. Unread is why, of one of them.
	Unreadable int64
	Unread     error
}

// ByThisClock corrects the times of records by the offset of the daemon's clock, so that ages are right.
func (l *Listing) ByThisClock() {
	for i := range l.Records {
		r := &l.Records[i]
		r.Created = r.Created.Add(-l.ClockOffset)
		if !r.LastUsed.IsZero() {
			r.LastUsed = r.LastUsed.Add(-l.ClockOffset)
		}
	}
}
