package check

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

func TestJudge(t *testing.T) {
	denied := fmt.Errorf("%w: 401", content.ErrDenied)
	off := fmt.Errorf("%w: 405", content.ErrUnsupported)
	away := fault.Wrap(errors.New("connection refused"), fault.Unavailable, "REGISTRY_UNAVAILABLE", "the registry is away", "start it now")
	odd := errors.New("500 oops")
	big := Disk{Total: 1000e9, Free: 400e9}
	tests := []struct {
		name    string
		got     Result
		state   State
		message string
		remedy  string
	}{
		{"answers", judgeReachable("r:1", nil), OK, "r:1", ""},
		{"is away", judgeReachable("r:1", away), Fail, "connection refused", "start it now"},
		{"odd", judgeReachable("r:1", odd), Fail, "oops", "r:1"},
		{"anonymous", judgeAuth("", nil), OK, "without credentials", ""},
		{"user", judgeAuth("joe", nil), OK, `"joe"`, ""},
		{"anonymous is refused", judgeAuth("", denied), Fail, "401", "registry.username"},
		{"user is refused", judgeAuth("joe", denied), Fail, "401", "password_file"},
		{"login breaks", judgeAuth("joe", odd), Fail, "oops", "log"},
		{"fast", judgeLatency(2 * time.Millisecond), OK, "2ms", ""},
		{"slow", judgeLatency(2 * time.Second), Warn, "2s", "load"},
		{"catalogue", judgeCatalog(3, nil), OK, "catalogue: 3", ""},
		{"catalogue is refused", judgeCatalog(0, denied), Fail, "401", "registry:catalog:*"},
		{"no catalogue", judgeCatalog(0, off), Fail, "405", "_catalog"},
		{"delete is on", judgeDelete(nil), OK, "allows", ""},
		{"delete is off", judgeDelete(off), Fail, "405", "storage.delete.enabled: true"},
		{"delete is refused", judgeDelete(denied), Fail, "401", "user"},
		{"delete is odd", judgeDelete(odd), Unknown, "oops", "log"},
		{"no storage", judgeDisk("", Disk{}, nil, nil), Unknown, "out of reach", "storage_root"},
		{"a bucket", judgeDisk("s3:registry", Disk{}, nil, nil), OK, "no bound", ""},
		{"storage is unreadable", judgeDisk("/s", Disk{}, odd, nil), Fail, "oops", "read"},
		{"storage of another", judgeDisk("/s", big, nil, errForeign{"a/b"}), Fail, `"a/b"`, "rootdirectory"},
		{"much free", judgeDisk("/s", big, nil, nil), OK, "400 GB of 1.0 TB are free (40 %)", ""},
		{"little free", judgeDisk("/s", Disk{Total: 100, Free: 9}, nil, nil), Warn, "9 B of 100 B", "/s"},
		{"nothing free", judgeDisk("/s", Disk{Total: 100}, nil, nil), Fail, "0 B", "/s"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.got.State != test.state {
				t.Errorf("%s: %s", test.got.State, test.got.Message)
			}
			if !strings.Contains(test.got.Message, test.message) || !strings.Contains(test.got.Remedy, test.remedy) {
				t.Errorf("message %q, remedy %q", test.got.Message, test.got.Remedy)
			}
			if (test.got.Remedy == "") != (test.state == OK) {
				t.Errorf("%s with remedy %q", test.state, test.got.Remedy)
			}
		})
	}
}

func TestWorst(t *testing.T) {
	tests := []struct {
		states []State
		want   State
	}{
		{nil, Unknown},
		{[]State{Unknown}, Unknown},
		{[]State{OK, Unknown}, OK},
		{[]State{OK, Warn, Unknown, OK}, Warn},
		{[]State{Fail, Warn}, Fail},
	}
	for _, test := range tests {
		var results []Result
		for _, s := range test.states {
			results = append(results, Result{State: s})
		}
		if got := worst(results); got != test.want {
			t.Errorf("%v: %s", test.states, got)
		}
	}
}

func TestSize(t *testing.T) {
	tests := map[int64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 1500: "1.5 kB", 999_499: "999 kB", 999_999: "1.0 MB",
		100e9: "100 GB", 12_340_000_000: "12.3 GB", 5e18: "5000 PB",
	}
	for bytes, want := range tests {
		if got := size(bytes); got != want {
			t.Errorf("%d: %s, want %s", bytes, got, want)
		}
	}
}

func TestCheckRefusesUnknownNames(t *testing.T) {
	_, err := New(nil, nil, nil, false).Check(t.Context(), []string{"reachable", "tea"})
	if fault.KindOf(err) != fault.InvalidArgument {
		t.Errorf("got %v", err)
	}
}
