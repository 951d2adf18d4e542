//go:build failpoints

package clock

import (
	"os"
	"sync"
	"time"
)

var moved = sync.OnceValue(func() time.Duration {
	by, _ := time.ParseDuration(os.Getenv("KILN_CLOCK"))
	return by
})

// Now is the time, moved by KILN_CLOCK.
func Now() time.Time { return time.Now().Add(moved()) }
