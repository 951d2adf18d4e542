//go:build failpoints

package clock

import (
	"os"
	"sync"
	"time"
)

// KILN_CLOCK moves the time as if it had passed; KILN_CLOCK_JUMP moves the host's clock
// alone, as somebody who sets it does.
var (
	moved  = sync.OnceValue(func() time.Duration { return duration("KILN_CLOCK") })
	jumped = sync.OnceValue(func() time.Duration { return duration("KILN_CLOCK_JUMP") })
)

func duration(variable string) time.Duration {
	by, _ := time.ParseDuration(os.Getenv(variable))
	return by
}

// Now is the time, moved by KILN_CLOCK and KILN_CLOCK_JUMP.
func Now() time.Time { return time.Now().Add(moved() + jumped()) }

// passed is the time since the host has started, moved by KILN_CLOCK.
func passed() time.Duration { return sinceBoot() + moved() }

// elsewhere is what another host's clock says, moved by KILN_CLOCK.
func elsewhere(says time.Time) time.Time { return says.Add(moved()) }
