package buildkit

import (
	"sync"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/kilnbuild/kiln/pkg/buildkitd"
)

// leastOffset is the least difference of two clocks that counts. Records that a run compares by their
// last use must not seem used because the offset was measured anew.
const leastOffset = time.Second

// offset is by how much a daemon's clock is ahead of this host's.
type offset struct {
	mu    sync.Mutex
	ahead time.Duration
}

// measure takes what a daemon said between two moments of this host. A difference that is within the
// time of the call, or that of the measurement before, changes nothing.
func (o *offset) measure(header metadata.MD, asked, answered time.Time) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	says, err := buildkitd.TimeIn(header)
	if err != nil { // of a daemon before BuildKit 0.11
		return o.ahead
	}
	took := answered.Sub(asked)
	ahead := says.Sub(asked.Add(took / 2)).Round(time.Millisecond)
	blur := took/2 + leastOffset
	switch {
	case ahead.Abs() <= blur && o.ahead.Abs() <= blur:
		o.ahead = 0
	case (ahead - o.ahead).Abs() > blur:
		o.ahead = ahead
	}
	return o.ahead
}
