package outcome

import (
	"errors"
	"testing"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// Errors as BuildKit words them whose verdict is easily given wrong: mistakes that read like
// faults of the daemon feed the operator's alert, and faults that read like mistakes hide
// from it.
func TestFailureOf_TellsMistakesFromFaults(t *testing.T) {
	for text, want := range map[string]build.Class{
		"dockerfile parse error on line 2: duplicate flag specified: network":                                      build.User,
		"no build stage in current context":                                                                        build.User,
		"failed to compute cache key: failed to match excludepatterns: [a-: unclosed":                              build.User,
		"failed to solve: too many links":                                                                          build.User,
		"error from sender: open secrets/key.pem: permission denied":                                               build.User,
		"error from receiver: open out/app: permission denied":                                                     build.User,
		"failed to configure local cache exporter: local cache exporter requires dest":                             build.User,
		"local cache importer requires src":                                                                        build.User,
		"unable to export multiple refs, missing platforms mapping":                                                build.User,
		"non-integer value fast specified for compression-level: strconv":                                          build.User,
		"failed to load LLB: proto: cannot parse invalid wire-format data":                                         build.User,
		"failed to parse image config for docker.io/library/x: invalid character 'x'":                              build.User,
		"working dir /link points to invalid target: path escapes":                                                 build.User,
		"invalid container id \"a/b\": only letters and numbers are allowed":                                       build.User,
		"unknown store x: not given":                                                                               build.User,
		"could not resolve image due to policy: evaluated":                                                         build.Policy,
		"failed to parse diffID \"x\" for y: invalid checksum digest format":                                       build.Infrastructure,
		"failed to parse value for memory.max: strange":                                                            build.Infrastructure,
		"failed to parse uncompressed annotation: invalid checksum digest format":                                  build.Infrastructure,
		"failed with BUILDKIT_SYNTAX = registry.example/frontend:1: frontend grpc server closed unexpectedly":      build.Infrastructure,
		"failed with BUILDKIT_SYNTAX = registry.example/frontend:1: rpc error: code = Unknown desc = runc crashed": build.Infrastructure,
		"mknod on a read-only overlay: operation is not allowed":                                                   build.Infrastructure,
		"lstat /var/lib/buildkit/runc-overlayfs/snapshots/7/fs: no such file or directory":                         build.Infrastructure,
		"failed to get edge: inconsistent graph state in edge a b 1":                                               build.Infrastructure,
		"unexpected digest: sha256:1 != sha256:2":                                                                  build.Infrastructure,
	} {
		if f := FailureOf(t.Context(), errors.New("failed to solve: "+text), nil); f.Class != want {
			t.Errorf("%q is of class %v (%s), want %v", text, f.Class, f.Reason, want)
		}
	}
}
