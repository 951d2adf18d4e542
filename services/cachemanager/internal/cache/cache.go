// Package cache has the words of the cache manager: what a cache holds.
package cache

import "time"

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
	Unknown     Type = "unknown" // One that a newer daemon may have.
)

// Types are all types, in the order in which they are shown.
func Types() []Type {
	return []Type{Regular, SourceLocal, GitCheckout, CacheMount, Frontend, Internal, Unknown}
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

// Record is one thing that a cache holds.
type Record struct {
	ID          string
	Type        Type
	Description string
	Bytes       int64 // its own, without those of its parents
	Parents     []string
	Mutable     bool
	InUse       bool
	Shared      bool // its bytes are also those of something else
	Created     time.Time
	LastUsed    time.Time // zero: never since it was made
	UsageCount  int
}

// LastActive is when the record was last used, or else made.
func (r Record) LastActive() time.Time {
	if r.LastUsed.IsZero() {
		return r.Created
	}
	return r.LastUsed
}
