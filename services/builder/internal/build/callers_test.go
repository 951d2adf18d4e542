package build

import (
	"testing"
	"testing/synctest"
	"time"
)

// A caller that comes back as its build expires either finds it cancelled, or keeps it:
// no call can attach between the look at the callers and the cancel.
func TestExpiry_LooksAndCancelsAtOnce(t *testing.T) {
	for name, attached := range map[string]bool{"alone": false, "with a caller": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cancelled := false
				l := &live{}
				l.cancel = func(error) {
					cancelled = true
					if l.mu.TryLock() {
						l.mu.Unlock()
						t.Error("a call could attach before the build is cancelled")
					}
				}
				l.expire(errCallerGone)
				if attached {
					time.Sleep(comeBack - 1)
					l.attach()
				}
				time.Sleep(2 * comeBack)
				synctest.Wait()
				if cancelled == attached {
					t.Errorf("cancelled: %v", cancelled)
				}
			})
		})
	}
}
