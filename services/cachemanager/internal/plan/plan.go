// Package plan says what a policy would remove, in which order and why, and why
// what stays, stays. It is pure: all that it knows it is given.
package plan

import (
	"time"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
)

// Input is what a plan is made from.
type Input struct {
	Listings []cache.Listing
	Policy   policy.Policy // resolved: see policy.Resolve
	Pins     []policy.Pin  // those in force
	// Leases are what keeps tags of directories, by the record's id.
	Leases map[cache.Ref]map[string]string // record id -> lease id
	Now    time.Time                       // ages are counted to it
}

// Plan is what would be done. It is not changed once it is made.
type Plan struct {
	Time          time.Time // that ages are counted to
	PolicyVersion int64
	// Verdicts are one for each record: what goes, in the order of its going, then
	// what stays, the longest unused first.
	Verdicts []Verdict
	Rules    []RuleAmount // in the order of the rules
	Removes  Amount
	Tied     Amount // of Removes
	Keeps    Amount
	Rooms    []Room
	// RemovesAll is whether nothing would be left that a run may remove, though
	// there is something.
	RemovesAll bool
}

// Room is what a daemon is to see to whose free disk only it knows.
type Room struct {
	Cache     cache.Ref
	Rule      string
	LowBytes  int64 // free bytes below which it begins
	HighBytes int64 // free bytes at which it ends
	// Except are the ids of records that stay.
	Except []string
}

// Verdict is what is to become of one record, and why.
type Verdict struct {
	Cache   cache.Ref
	Record  cache.Record
	Remove  bool
	Rule    string // that decided; empty: none speaks of it
	Reason  Reason
	Order   int64 // place in the order of going, from 1; 0: stays
	Age     time.Duration
	Shrink  int    // of a record that stays, how many of its Shrinks go; 0: it stays as it is
	Frees   int64  // bytes, if it goes or is made smaller
	KeptBy  string // id of the record, pin or lease that keeps it
	Tie     int32  // records of a tie have the same number, from 1; 0: certain
	Explain string // the reason in a sentence with the figures
}

// Amount is records and the bytes that their removal frees.
type Amount struct {
	Records, Bytes int64
}

// RuleAmount is what one rule removes.
type RuleAmount struct {
	Rule string
	Amount
}

// Reason is why a record goes or stays.
type Reason string

// The reasons.
const (
	Age          Reason = "age"           // goes: unused for longer than its rule keeps
	Bytes        Reason = "bytes"         // goes: more bytes than its rule keeps
	Records      Reason = "records"       // goes: more records than its rule keeps
	FreeDisk     Reason = "free_disk"     // goes: too little free disk
	Family       Reason = "family"        // goes: its parent or twin could not go without it
	Cleaned      Reason = "cleaned"       // goes: CleanCache was told to
	WithinBounds Reason = "within_bounds" // stays
	InUse        Reason = "in_use"        // stays: a build uses it
	Pinned       Reason = "pinned"        // stays; KeptBy is the pin
	Child        Reason = "child"         // stays: KeptBy, which stays, is made upon it
	Leased       Reason = "leased"        // stays; KeptBy is the lease
	Protected    Reason = "protected"     // stays: a rule protects it
	UsedSince    Reason = "used_since"    // stays: used since the plan was made
	OverBudget   Reason = "budget"        // stays: the budget of the run is spent
	Gone         Reason = "gone"          // was gone before the run came to it
	NoHelp       Reason = "no_help"       // stays: what builds hold is beyond the bound by itself
)
