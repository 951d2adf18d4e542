package e2e_test

import (
	"encoding/json"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

// A few tests are short in `make test` and go on for long in `make soak`, which sets
// these variables.

// rounds is how many rounds a property test has.
func rounds(t *testing.T, few int) int {
	t.Helper()
	if asked := os.Getenv("KILN_SOAK_ROUNDS"); asked != "" {
		return labtest.Must(strconv.Atoi(asked))(t)
	}
	return few
}

// soakTime is how long a test under load goes on.
func soakTime(t *testing.T, short time.Duration) time.Duration {
	t.Helper()
	if asked := os.Getenv("KILN_SOAK_TIME"); asked != "" {
		return labtest.Must(time.ParseDuration(asked))(t)
	}
	return short
}

// soak is one result, as .run/soak.json holds it.
type soak struct {
	Name       string  `json:"name"`
	Seconds    float64 `json:"seconds"`
	Operations int     `json:"operations"`
	Faults     int     `json:"faults"` // that the test made
	Broken     int     `json:"broken"` // operations that went wrong
}

// soaked adds a result to the file of `make soak`, when the test ends.
func soaked(t *testing.T, operations *int) {
	t.Helper()
	start := time.Now()
	t.Cleanup(func() {
		file := os.Getenv("KILN_SOAK_FILE")
		if file == "" {
			return
		}
		var all []soak
		if data, err := os.ReadFile(file); err == nil {
			if err := json.Unmarshal(data, &all); err != nil {
				t.Error(err)
			}
		}
		result := soak{Name: t.Name(), Seconds: time.Since(start).Seconds(), Operations: *operations}
		if t.Failed() {
			result.Broken = 1
		}
		data := labtest.Must(json.MarshalIndent(append(all, result), "", "  "))(t)
		if err := os.WriteFile(file, append(data, '\n'), 0o600); err != nil {
			t.Error(err)
		}
	})
}
