package sqlite

import (
	"encoding/json"
	"math"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A record of the first version is read, and written again, with all that it
// held: fields may be added, and none renamed.
func TestRecordsOfTheFirstVersion(t *testing.T) {
	stored, err := os.ReadFile("testdata/record_v1.json")
	if err != nil {
		t.Fatal(err)
	}
	rec, err := decode(stored)
	if err != nil {
		t.Fatal(err)
	}
	again, err := encode(rec)
	if err != nil {
		t.Fatal(err)
	}
	var before, after map[string]any
	if err := json.Unmarshal(stored, &before); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(again, &after); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(any(before), keep(after, before)); diff != "" {
		t.Errorf("what was stored is read differently (-stored +read):\n%s", diff)
	}
}

// keep is v without the fields that like does not have.
func keep(v, like any) any {
	switch v := v.(type) {
	case map[string]any:
		like, _ := like.(map[string]any)
		kept := make(map[string]any)
		for name, field := range v {
			if old, ok := like[name]; ok {
				kept[name] = keep(field, old)
			}
		}
		return kept
	case []any:
		if like, ok := like.([]any); ok && len(like) == len(v) {
			kept := make([]any, len(v))
			for i := range v {
				kept[i] = keep(v[i], like[i])
			}
			return kept
		}
	}
	return v
}

func TestNanoseconds(t *testing.T) {
	for _, test := range []struct {
		time time.Time
		want int64
	}{
		{time.Unix(0, 1), 1},
		{time.Unix(0, math.MaxInt64), math.MaxInt64},
		{time.Unix(0, math.MinInt64), math.MinInt64},
		{time.Time{}, math.MinInt64},
		{time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC), math.MaxInt64},
	} {
		if got := nanoseconds(test.time); got != test.want {
			t.Errorf("%s is %d, want %d", test.time, got, test.want)
		}
	}
}
