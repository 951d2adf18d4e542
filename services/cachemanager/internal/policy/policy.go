// Package policy says what stays in the caches and what goes.
package policy

import (
	"regexp"
	"time"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// Policy is ordered rules, each applied to what those before it have left.
// Without rules nothing goes.
type Policy struct {
	Version   int64     // 1 for the configured one, then 2, 3, …; 0: of a request
	Updated   time.Time // when this version came into force
	UpdatedBy string    // identity of who set it; empty without one
	Comment   string    // why, in the words of who set it
	Rules     []Rule
	Budget    Budget
}

// Rule is one rule: of the records that match, those beyond the bounds of Keep go,
// the longest unused first.
type Rule struct {
	Name     string // unique in the policy
	Extends  string // name of a rule whose fields stand in for those that are not set; see Resolve
	Match    *Match // nil: all
	Keep     *Keep  // nil: nothing goes
	Protect  bool   // what matches is kept from all rules that follow
	Disabled bool
}

// Match says which records a rule or a pin is about: those for which everything
// that is set holds.
type Match struct {
	Types         []cache.Type
	Description   *regexp.Regexp // matches anywhere in it; nil: any
	MinAge        *time.Duration // unused for at least this long
	MaxAge        *time.Duration // unused for at most this long
	MinUsageCount *int64
	MaxUsageCount *int64
	Projects      []string // used by any of these; "*" at the end is a wildcard
	Daemons       []string // on any of these; "*" at the end is a wildcard
	Directories   []string // in any of these
}

// Keep is the bounds of a rule. What is beyond any of them goes.
type Keep struct {
	Age      *time.Duration // a record unused for longer goes
	Bytes    *int64         // most bytes; 0 keeps nothing
	Records  *int64         // most records; 0 keeps nothing
	FreeDisk *FreeDisk
	Scope    Scope // of Bytes and Records
}

// FreeDisk says when to make room, and how much.
type FreeDisk struct {
	LowBytes  int64 // free bytes below which the rule begins to remove
	HighBytes int64 // free bytes at which it ends; never below LowBytes
}

// Budget bounds one run. What is left over goes in the next.
type Budget struct {
	Time    time.Duration // 0: no bound
	Records *int64
	Bytes   *int64
}

// Scope is what the bytes and records of a rule are counted over.
type Scope int

// The scopes. The zero value is that of each cache.
const (
	PerCache   Scope = iota // each daemon and each directory on its own
	Fleet                   // all caches together
	PerProject              // each project on each cache
	PerType                 // each record type on each cache
)

// Pin keeps records from every run. One of Record and Match is set.
type Pin struct {
	ID        string
	Cache     cache.Ref // of Record
	Record    string    // id of a record, kept with all records that it is made upon
	Match     *Match    // all records that match, also those to come
	Reason    string
	Created   time.Time
	Expires   time.Time // zero: when it is removed
	CreatedBy string
}
