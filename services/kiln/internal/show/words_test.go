package show_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/services/kiln/internal/show"
)

func TestLasted_WritesDurationsAsPeopleDo(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0ms", -time.Second: "0ms", 999 * time.Millisecond: "999ms", time.Second: "1.0s", 59940 * time.Millisecond: "59.9s", 59960 * time.Millisecond: "1m",
		80 * time.Second: "1m20s", time.Minute: "1m", 10 * time.Minute: "10m", 70 * time.Minute: "1h10m", 3 * time.Hour: "3h", 3*time.Hour + 30*time.Second: "3h0m30s",
		100*time.Hour + time.Minute + 50*time.Second: "100h1m50s",
	} {
		if got := show.Lasted(d); got != want {
			t.Errorf("%s is written %s, want %s", d, got, want)
		}
	}
}

// What is written is the duration, within its precision: no digit is lost.
func TestLasted_LosesNoDigits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Range(0, int64(2000*time.Hour)).Draw(t, "duration"))
		back, err := time.ParseDuration(show.Lasted(d))
		if err != nil {
			t.Fatal(err)
		}
		precision := 500 * time.Millisecond
		switch {
		case d < time.Second:
			precision = time.Millisecond
		case d < time.Minute:
			precision = 50 * time.Millisecond
		}
		if (back - d).Abs() > precision {
			t.Fatalf("%s is written %s", d, show.Lasted(d))
		}
	})
}
