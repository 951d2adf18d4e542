package human_test

import (
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/human"
)

func TestSpan(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"0s": -time.Second, "1m": time.Minute - time.Millisecond, "1.5s": 1500 * time.Millisecond, "59s": 59 * time.Second, "5m 10s": 310 * time.Second, "1h": time.Hour + time.Second,
		"2d 3h": 51*time.Hour + time.Minute, "2d": 48 * time.Hour,
	} {
		if got := human.Span(d); got != want {
			t.Errorf("%s: %s, want %s", d, got, want)
		}
	}
}

func TestSize(t *testing.T) {
	for want, n := range map[string]int64{
		"0 B": 0, "999 B": 999, "1 kB": 1000, "1.5 MB": 1_500_000, "100 GB": 100_000_000_000, "1 MB": 999_600, "9.22e+03 PB": 1<<63 - 1,
	} {
		if got := human.Size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
