// Package run has the words of runs: plans that can be carried out, and what became of
// them.
package run

import (
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
)

// Plan is a plan that was shown.
type Plan struct {
	*plan.Plan
	Digest  string
	Created time.Time
	Expires time.Time
	// Hypothetical plans are for another time than now, and cannot be carried out.
	Hypothetical bool
}
