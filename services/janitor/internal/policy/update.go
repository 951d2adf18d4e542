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
}

// Change asks for a new version of the policy.
type Change struct {
	Policy   Policy
	Expected int64 // the version that it was made upon; 0: any
	Dry      bool  // only check it
	Force    bool  // also when it is empty or removes everything
	Caller   string
}

// Update puts a new version of the policy into force. Errors: those of Resolve;
// FAILED_PRECONDITION for one that is empty or removes everything, without force; ABORTED.
func Update(ctx context.Context, store Store, c Change, now time.Time) (Policy, error) {
	p := c.Policy
	p.Updated, p.UpdatedBy = now, c.Caller
	resolved, err := Resolve(p)
	if err != nil {
		return Policy{}, err
	}
	if err := Extreme(resolved); err != nil && !c.Force {
		return Policy{}, err
	}
	if !c.Dry {
		return store.SetPolicy(ctx, p, c.Expected)
	}
	current, err := store.PolicyInForce(ctx)
	p.Version = current.Version + 1
	return p, err
}

// Extreme is a FAILED_PRECONDITION fault for a resolved policy that has no rule, or would
// keep nothing.
func Extreme(p Policy) error {
	const remedy = "set force (of a run: force_all) if that is meant, or let its rules keep something"
	switch {
	case len(p.Rules) == 0 && p.MaxBytes == nil:
		return fault.New(fault.FailedPrecondition, "WRONG_STATE", "the policy is empty: it has no rule that is not disabled", remedy)
	case RemovesAll(p):
		return fault.New(fault.FailedPrecondition, "WRONG_STATE", "the policy would remove everything", remedy)
	}
	return nil
}
