package outcome

import (
	"encoding/json"

	"github.com/containerd/typeurl/v2"
	"github.com/moby/buildkit/util/grpcerrors"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// Bounds of the details of a failure.
const (
	maxDetails     = 32
	maxDetailBytes = 64 << 10
)

// details returns the typed errors that BuildKit sends with an error, in the
// encoding in which it sends them; its client has unpacked them into a chain. Stack
// traces are of no use outside the daemon, and are left out.
func details(err error) []build.Detail {
	var all []build.Detail
	walk(err, func(err error) {
		typed, ok := err.(grpcerrors.TypedError)
		if !ok || len(all) == maxDetails {
			return
		}
		message := typed.ToProto()
		url, err := typeurl.TypeURL(message)
		if err != nil {
			return
		}
		value, err := json.Marshal(message)
		if err == nil && len(value) <= maxDetailBytes {
			all = append(all, build.Detail{TypeURL: url, Value: value})
		}
	})
	return all
}

// walk calls visit for err and all that it wraps.
func walk(err error, visit func(error)) {
	if err == nil {
		return
	}
	visit(err)
	switch wrapper := err.(type) { //nolint:errorlint // errors.Unwrap knows one of the two
	case interface{ Unwrap() error }:
		walk(wrapper.Unwrap(), visit)
	case interface{ Unwrap() []error }:
		for _, inner := range wrapper.Unwrap() {
			walk(inner, visit)
		}
	}
}
