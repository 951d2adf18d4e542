package build

import (
	"context"
	"errors"
	"time"

	"github.com/kilnbuild/kiln/pkg/aip"
)

// Frame is an event in the form in which it is stored and sent: encoded once,
// for all that read it.
type Frame struct {
	Sequence uint64
	Data     []byte
}

// Store keeps records, requests and events, so that they outlive the process.
// What a method has returned from is there after a kill -9. Implementations must
// pass storetest.
type Store interface {
	// Create adds a build; one whose id is there already is an ALREADY_EXISTS
	// fault. With a request id that a build of the same project has
	// already, it adds nothing and returns that build and false, also when two
	// callers come at once. request is what Request returns: never a secret.
	Create(ctx context.Context, rec Record, request []byte) (_ Record, created bool, _ error)
	// Commit writes a record and the frames that follow the last stored one, in
	// one step. It returns ErrFinal, and writes nothing, when the stored record
	// has ended: there is one terminal state. An error that wraps ErrRefused comes
	// again however often the same is written.
	Commit(ctx context.Context, rec Record, frames []Frame) error
	// Find returns the build of a project that has a request id, or ErrUnknown.
	Find(ctx context.Context, project, requestID string) (Record, error)
	// Get returns a record, or ErrUnknown.
	Get(ctx context.Context, id string) (Record, error)
	// Request returns the request of a build, or ErrUnknown.
	Request(ctx context.Context, id string) ([]byte, error)
	// Frames returns frames from a sequence number on, in order, not many more
	// bytes than maxBytes, and at least one when there is one. It returns
	// ErrUnknown when there is no such build.
	Frames(ctx context.Context, id string, from uint64, maxBytes int) ([]Frame, error)
	// List returns summaries of at most size records that fit the query, and the token
	// of the next page, empty on the last one. A page token that is not one of the
	// same query is an INVALID_ARGUMENT fault. The token tells what the last record
	// holds: it is not for callers to see.
	List(ctx context.Context, query Query, size int, token string) ([]Record, string, error)
	// Unended returns the builds that have not ended, oldest first.
	Unended(ctx context.Context) ([]Record, error)
	// Forget removes builds that ended before a time, then the oldest ended ones
	// until at most max builds and bytes are left, with their requests and events.
	// It returns the ids of those that went.
	Forget(ctx context.Context, endedBefore time.Time, maxBuilds int, maxBytes int64) ([]string, error)
	// Close gives back what the store holds.
	Close() error
}

// Errors of a Store.
var (
	ErrUnknown = errors.New("no such build")
	ErrFinal   = errors.New("the build has ended already")
	ErrRefused = errors.New("the store refuses the write")
)

// Query says which builds to list, and in which order. Builds that are equal in
// the order come newest first: last created first.
type Query struct {
	Filter aip.Filter  // nil: all
	Order  []aip.Order // empty: newest first
	// Fits ends a page before a record for which it returns false; it is asked once for
	// each record, in order. nil: a page has no bound but its size.
	Fits func(summary Record) bool
}

// The fields of a query.
const (
	FieldState      aip.Field = "state"       // a State
	FieldProject    aip.Field = "project"     // a string
	FieldOrigin     aip.Field = "origin"      // an Origin
	FieldCreateTime aip.Field = "create_time" // a time.Time
	FieldEndTime    aip.Field = "end_time"    // a time.Time
	FieldTag        aip.Field = "tag"         // a string; fits when one of the tags does
	FieldCaller     aip.Field = "caller"      // a string
	FieldDaemon     aip.Field = "daemon"      // a string
)
