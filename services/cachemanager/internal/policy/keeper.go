package policy

import (
	"context"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Store keeps the versions of the policy.
type Store interface {
	PolicyInForce(ctx context.Context) (Policy, error)
	// SetPolicy puts a new version into force, and returns it. When expected is not 0
	// and not the version in force, it is an ABORTED fault.
	SetPolicy(ctx context.Context, p Policy, expected int64) (Policy, error)
	// Approve lets the schedule apply a version.
	Approve(ctx context.Context, version int64) error
}

// Change asks for a new version of the policy.
type Change struct {
	Policy   Policy
	Expected int64 // the version that it was made upon; 0: any
	Dry      bool  // only check it
	Force    bool  // also when it removes everything; the schedule applies it without approval
	Caller   string
}

// Update puts a new version of the policy into force. Errors: those of Resolve;
// FAILED_PRECONDITION for one that removes everything, without force; ABORTED.
func Update(ctx context.Context, store Store, c Change, now time.Time) (Policy, error) {
	p := c.Policy
	p.Updated, p.UpdatedBy = now, c.Caller
	resolved, err := Resolve(p)
	if err != nil {
		return Policy{}, err
	}
	if RemovesAll(resolved) && !c.Force {
		return Policy{}, fault.New(fault.FailedPrecondition, "WRONG_STATE", "the policy would remove everything that is not in use or pinned",
			"set force if that is meant, or let its rules keep something")
	}
	if !c.Dry {
		p, err = store.SetPolicy(ctx, p, c.Expected)
		if err == nil && c.Force {
			err = store.Approve(ctx, p.Version)
		}
		return p, err
	}
	current, err := store.PolicyInForce(ctx)
	p.Version = current.Version + 1
	return p, err
}
