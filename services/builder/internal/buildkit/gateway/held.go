package gateway

import (
	"fmt"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Bounds of the calls under way, most of which wait for something. Each takes about
// 25 KiB, and a bake of 1,000 targets makes 4,000. A connection has no bound of its
// own that matters: calls that are held must not keep the next one from coming.
const (
	maxCalls       = 20_000
	maxCallsOfEach = 12_000 // of one identity
)

// held counts the calls under way.
type held struct {
	mu  sync.Mutex
	all int
	of  map[string]int // by identity
}

func newHeld() *held { return &held{of: make(map[string]int)} }

// enter counts a call until done is called. Errors: RESOURCE_EXHAUSTED.
func (h *held) enter(identity string) (done func(), err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all >= maxCalls || h.of[identity] >= maxCallsOfEach {
		full := fault.New(fault.ResourceExhausted, "LIMIT_REACHED",
			fmt.Sprintf("%d calls of BuildKit's API are under way, %d of them the caller's; the limits are %d and %d",
				h.all, h.of[identity], maxCalls, maxCallsOfEach), "try again when some of them have ended")
		full.RetryAfter = 5 * time.Second
		return nil, full
	}
	h.all++
	h.of[identity]++
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.all--
		if h.of[identity]--; h.of[identity] == 0 {
			delete(h.of, identity)
		}
	}, nil
}
