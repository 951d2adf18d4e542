// Package plan says what a policy would remove from a registry, in which order and why,
// and why what stays, stays. It is pure: all that it knows it is given.
package plan

import (
	"iter"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
)

// Input is what a plan is made from.
type Input struct {
	Registry inventory.Registry
	Policy   policy.Policy // resolved: see policy.Resolve
	Now      time.Time     // ages are counted to it
	// Within says which repositories the plan is about; the others only hold what they
	// share with these. nil: all, and what no manifest names.
	Within func(repository string) bool
	// Uses is what is known of uses but for what the registry's storage says.
	Uses Uses
	// Leases is what is in use now.
	Leases Leases
}

// Uses knows of uses. A nil one knows of none.
type Uses interface {
	// Last is when a manifest, by its digest or a tag of it, was last pushed, and when it was
	// last pulled or imported by a build; zero: not known of.
	Last(repository string, digest content.Digest, tags []string) (pushed, pulled time.Time)
	// Pulls are the blobs of a repository that were pulled or mounted, and when each last was.
	Pulls(repository string) iter.Seq2[content.Digest, time.Time]
	// Away is for how long since a time nobody listened to uses: so much longer may
	// manifests be unused.
	Away(since time.Time) time.Duration
}

// Leases knows of leases. A nil one knows of none.
type Leases interface {
	// Lease is the id of a lease on a manifest, by its digest or a tag of it; empty: none.
	Lease(repository string, digest content.Digest, tags []string) string
	// Export is the id of a lease of a build that writes to a repository; empty: none.
	Export(repository string) string
}

// Plan is what would be done.
type Plan struct {
	Time          time.Time
	PolicyVersion int64
	// Verdicts are one for each manifest, then for each orphan and upload: what goes, in
	// the order of its going, then what stays, by repository and digest.
	Verdicts   []Verdict
	Rules      []RuleAmount // in the order of the rules
	Removes    Amount
	Keeps      Amount
	RemovesAll bool // there are manifests, and all would go
	Warnings   []string
	Doubts     int64 // manifests of which it is not known what they name
}

// Removals are the verdicts on what goes. They are the plan's own.
func (p *Plan) Removals() []Verdict {
	n := 0
	for n < len(p.Verdicts) && p.Verdicts[n].Remove {
		n++
	}
	return p.Verdicts[:n:n]
}

// Amount is manifests, blobs and their bytes.
type Amount struct {
	Manifests, Blobs, Bytes, Uploads int64
}

// RuleAmount is what one rule removes.
type RuleAmount struct {
	Rule string
	Amount
}

// ItemKind is what something in a registry is.
type ItemKind string

// The kinds.
const (
	Manifest ItemKind = "manifest"
	Blob     ItemKind = "blob"
	Upload   ItemKind = "upload"
	Link     ItemKind = "link"
)

// Verdict is what is to become of something, and why.
type Verdict struct {
	Repository string // empty for a blob, which belongs to all
	Kind       ItemKind
	Digest     string // or the id of an upload, or the name of a tag that leads nowhere
	Tags       []string
	Of         content.Kind // of a manifest
	Bytes      int64        // its own
	Pushed     time.Time
	Pulled     time.Time // zero: not known of

	Remove     bool
	Rule       string // that decided; empty: none speaks of it
	Reason     Reason
	Explain    string
	Order      int64 // place in the order of going, from 1; 0: stays
	Age        time.Duration
	Frees      int64  // bytes, after what goes before it
	FreesBlobs int64  // that its removal frees, itself left out
	KeptBy     string // digest, or id of the lease
	// Owners are the manifests of the repository that it is a part of or refers to: while
	// one of them stays, it stays.
	Owners []content.Digest
}

// Reason is why something goes or stays.
type Reason string

// The reasons.
const (
	Age          Reason = "age"           // goes: unused for longer than its rule keeps
	Bytes        Reason = "bytes"         // goes: more bytes than its rule keeps
	PushAge      Reason = "push_age"      // goes
	CreateAge    Reason = "create_age"    // goes
	Family       Reason = "family"        // goes: its parent or subject goes
	Unreached    Reason = "unreached"     // goes: nothing reaches it, and its grace is over
	Abandoned    Reason = "abandoned"     // goes: an upload
	Dangling     Reason = "dangling"      // goes: it leads nowhere
	Surplus      Reason = "surplus"       // goes: not among the newest that its rule keeps
	WithinBounds Reason = "within_bounds" // stays
	Newest       Reason = "newest"        // stays: among the newest that its rule keeps
	NoRule       Reason = "no_rule"       // stays
	Parent       Reason = "parent"        // stays: KeptBy names it, or is its subject
	Protected    Reason = "protected"     // stays
	OverBudget   Reason = "budget"        // stays: the budget of the run is spent
	Grace        Reason = "grace"         // stays: nothing reaches it, and its grace is not over
	Doubt        Reason = "doubt"         // stays: something near it cannot be read
	Leased       Reason = "leased"        // stays: KeptBy is the lease
	UsedSince    Reason = "used_since"    // stays: pushed, pulled or moved since the plan
	Gone         Reason = "gone"          // was gone before the run came to it
)
