package debug

import (
	"context"
	"fmt"
	"time"
)

// State is what a check found.
type State string

// The states, from good to bad.
const (
	OK      State = "ok"
	Unknown State = "unknown" // it could not be found out, or is not there to look at
	Warn    State = "warn"
	Fail    State = "fail"
)

// Finding is what one check found.
type Finding struct {
	// Check is the name of the check.
	Check string `json:"check"`
	// State is how it stands.
	State State `json:"state"`
	// Message is that in a sentence.
	Message string `json:"message"`
	// Evidence is what was seen.
	Evidence []string `json:"evidence,omitempty"`
	// Remedy is the command that mends it, or what to do.
	Remedy string `json:"remedy,omitempty"`
	// Fixed says that --fix has mended it.
	Fixed bool `json:"fixed,omitempty"`

	fix func() error // mends it, where that is safe
}

// Report is all that was found.
type Report struct {
	Time    time.Time `json:"time"`
	Host    string    `json:"host"`
	Version string    `json:"version"`
	// Profile is the name of the profile that the parts were found by.
	Profile  string    `json:"profile"`
	Findings []Finding `json:"findings"`
}

// check is one thing that is looked at. It may find several things.
type check struct {
	name string
	run  func(ctx context.Context) []Finding
}

// checkTimeout bounds one check.
const checkTimeout = 15 * time.Second

// look does the checks, one after the other.
func look(ctx context.Context, checks []check, told func(check string)) (all []Finding) {
	for _, c := range checks {
		if ctx.Err() != nil {
			return all
		}
		told(c.name)
		bounded, cancel := context.WithTimeout(ctx, checkTimeout)
		found := c.run(bounded)
		cancel()
		for i := range found {
			found[i].Check = c.name
		}
		all = append(all, found...)
	}
	return all
}

// mend does what is safe of what was found.
func mend(findings []Finding) {
	for i := range findings {
		f := &findings[i]
		if f.fix == nil || f.State == OK {
			continue
		}
		if err := f.fix(); err != nil {
			f.Evidence = append(f.Evidence, fmt.Sprintf("it could not be mended: %v", err))
			continue
		}
		f.Fixed = true
	}
}

func ok(format string, args ...any) []Finding {
	return []Finding{{State: OK, Message: fmt.Sprintf(format, args...)}}
}

func unknown(format string, args ...any) []Finding {
	return []Finding{{State: Unknown, Message: fmt.Sprintf(format, args...)}}
}
