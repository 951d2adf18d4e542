//go:build !failpoints

package clock

import "time"

// Now is the time.
func Now() time.Time { return time.Now() }

// passed is the time since the host has started.
func passed() time.Duration { return sinceBoot() }

// elsewhere is what another host's clock says.
func elsewhere(says time.Time) time.Time { return says }
