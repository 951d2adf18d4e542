package outcome

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/stack"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// What buildkitd 0.34 and those behind it say, to the letter.
func TestClassify(t *testing.T) {
	const image = "127.0.0.1:1/a/b:1: failed to resolve source metadata for 127.0.0.1:1/a/b:1: "
	for name, tc := range map[string]struct {
		err    error
		step   string
		reason string
		kind   fault.Kind
		class  build.Class
	}{
		"image, refused": {errors.New(image + `failed to do request: Head "http://127.0.0.1:1/v2/a/b/manifests/1": dial tcp 127.0.0.1:1: connect: connection refused`), "", "REGISTRY_UNAVAILABLE", fault.Unavailable, build.Infrastructure},
		"image, 502":     {errors.New(image + `unexpected status from HEAD request to http://127.0.0.1:1/v2/a/b/manifests/1: 502 Bad Gateway`), "", "REGISTRY_UNAVAILABLE", fault.Unavailable, build.Infrastructure},
		// Through a proxy, Go tells the status text of a CONNECT alone.
		"image, proxy":      {errors.New(image + `failed to do request: Head "https://r/v2/a": Bad Gateway`), "", "REGISTRY_UNAVAILABLE", fault.Unavailable, build.Infrastructure},
		"load, no engine":   {errors.New(`error from receiver: docker load: exit status 1`), "exporting to docker image format", "EXPORT_FAILED", fault.FailedPrecondition, build.User},
		"image, slow":       {errors.New(image + `failed to do request: Head "https://r/v2/a": net/http: TLS handshake timeout`), "", "REGISTRY_UNAVAILABLE", fault.Unavailable, build.Infrastructure},
		"image, missing":    {errors.New(image + `127.0.0.1:1/a/b:1: not found`), "", "SOURCE_NOT_FOUND", fault.NotFound, build.User},
		"image, no host":    {errors.New(image + `failed to do request: Head "https://r.example/v2/": dial tcp: lookup r.example: no such host`), "", "SOURCE_NOT_FOUND", fault.NotFound, build.User},
		"image, 401":        {errors.New(image + `pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed`), "", "SOURCE_DENIED", fault.PermissionDenied, build.User},
		"image, 403":        {errors.New(image + `unexpected status from HEAD request to http://127.0.0.1:1/v2/a/b/manifests/1: 403 Forbidden`), "", "SOURCE_DENIED", fault.PermissionDenied, build.User},
		"push, refused":     {errors.New(`failed to push 127.0.0.1:1/a/b:1: failed to do request: Head "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused`), "exporting to image", "REGISTRY_UNAVAILABLE", fault.Unavailable, build.Infrastructure},
		"push, 403":         {errors.New(`failed to push 127.0.0.1:1/a/b:1: unexpected status from HEAD request to http://127.0.0.1:1/v2/: 403 Forbidden`), "exporting to image", "EXPORT_FAILED", fault.PermissionDenied, build.User},
		"push, otherwise":   {errors.New(`failed to push 127.0.0.1:1/a/b:1: manifest invalid`), "exporting to image", "EXPORT_FAILED", fault.Internal, build.Infrastructure},
		"cache, refused":    {errors.New(`error writing layer blob: failed to do request: Head "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused`), "exporting cache to registry", "REGISTRY_UNAVAILABLE", fault.Unavailable, build.Infrastructure},
		"disk full":         {errors.New(`failed to prepare extraction snapshot: write /var/lib/buildkit/x: no space left on device`), "[1/2] FROM a", "DISK_FULL", fault.ResourceExhausted, build.Infrastructure},
		"registry's disk":   {errors.New(`failed to push r/a:1: unexpected status from PUT request to http://r/v2/: 507 Insufficient Storage`), "exporting to image", "DISK_FULL", fault.ResourceExhausted, build.Infrastructure},
		"entitlement":       {errors.New(`granting entitlement security.insecure is not allowed by build daemon configuration`), "", "POLICY_DENIED", fault.PermissionDenied, build.Policy},
		"right not asked":   {errors.New(`failed to load LLB: network.host is not allowed`), "", "POLICY_DENIED", fault.PermissionDenied, build.Policy},
		"gateway's list":    {errors.New(`'registry.example/evil' is not an allowed gateway source`), "", "POLICY_DENIED", fault.PermissionDenied, build.Policy},
		"source policy":     {errors.New(`source "docker-image://docker.io/library/a:1" denied by policy: source denied by policy`), "", "POLICY_DENIED", fault.PermissionDenied, build.Policy},
		"git, away":         {errors.New(`failed to fetch remote http://127.0.0.1:1/a/b.git: git stderr: fatal: unable to access 'http://127.0.0.1:1/a/b.git/': Failed to connect to 127.0.0.1 port 1: Couldn't connect to server: exit status 128`), "[internal] load git context", "SOURCE_NOT_FOUND", fault.Unavailable, build.Infrastructure},
		"git, missing":      {errors.New(`failed to fetch remote http://h/a.git: git stderr: fatal: repository 'http://h/a.git/' not found: exit status 128`), "[internal] load git context", "SOURCE_NOT_FOUND", fault.NotFound, build.User},
		"git, credentials":  {errors.New(`failed to fetch remote http://h/a.git: git stderr: fatal: could not read Username for 'http://h': terminal prompts disabled: exit status 128`), "[internal] load git context", "SOURCE_DENIED", fault.PermissionDenied, build.User},
		"git, ssh":          {errors.New(`failed to fetch remote git@h:a.git: git stderr: git@h: Permission denied (publickey).: exit status 128`), "[internal] load git context", "SOURCE_DENIED", fault.PermissionDenied, build.User},
		"no Dockerfile":     {errors.New(`failed to read dockerfile: open Dockerfile: no such file or directory`), "", "SOURCE_NOT_FOUND", fault.NotFound, build.User},
		"no file":           {errors.New(`failed to calculate checksum of ref abc::def: "/no/such.txt": not found`), "[2/2] COPY no/such.txt /", "SOURCE_NOT_FOUND", fault.NotFound, build.User},
		"no stage":          {errors.New(`target stage "imaginary" could not be found`), "", "DOCKERFILE_INVALID", fault.InvalidArgument, build.User},
		"no secret":         {errors.New(`secret absent: not found`), "[2/2] RUN true", "SOURCE_NOT_FOUND", fault.NotFound, build.User},
		"syntax":            {errors.New(`dockerfile parse error on line 3: unknown instruction: COPPY`), "", "DOCKERFILE_INVALID", fault.InvalidArgument, build.User},
		"not UTF-8":         {errors.New(`failed to marshal LLB definition: string field contains invalid UTF-8`), "", "DOCKERFILE_INVALID", fault.InvalidArgument, build.User},
		"a link":            {errors.New(`openat x: path escapes from parent`), "[internal] load build context", "SOURCE_NOT_FOUND", fault.FailedPrecondition, build.User},
		"daemon gone":       {status.Error(codes.Unavailable, `connection error: desc = "transport: error while dialing: dial unix /run/b.sock: connect: no such file or directory"`), "", "DAEMON_UNAVAILABLE", fault.Unavailable, build.Infrastructure},
		"cancelled":         {fmt.Errorf("solving: %w", context.Canceled), "", "CANCELLED", fault.Canceled, build.ByCancel},
		"too late":          {status.Error(codes.DeadlineExceeded, "context deadline exceeded"), "", "TIMED_OUT", fault.DeadlineExceeded, build.ByTimeout},
		"what nobody knows": {errors.New(`the moon is in the seventh house`), "", "INTERNAL", fault.Internal, build.Infrastructure},
		"of Kiln's own":     {fault.New(fault.PermissionDenied, "POLICY_DENIED", "m", "r"), "", "POLICY_DENIED", fault.PermissionDenied, build.Policy},
		"a source, denied":  {fault.New(fault.PermissionDenied, "SOURCE_DENIED", "m", "r"), "", "SOURCE_DENIED", fault.PermissionDenied, build.User},
		"artifacts' disk":   {errors.Join(fault.New(fault.ResourceExhausted, "DISK_FULL", "m", "r"), errors.New("whatever the daemon says")), "", "DISK_FULL", fault.ResourceExhausted, build.Infrastructure},
	} {
		t.Run(name, func(t *testing.T) {
			err, progress := tc.err, NewProgress()
			if tc.step != "" {
				id := digest.FromString(tc.step)
				progress.Update(&client.SolveStatus{Vertexes: []*client.Vertex{{Digest: id, Name: tc.step, Error: err.Error()}}}, func(any) {})
				err = errdefs.WrapVertex(err, id)
			}
			f := FailureOf(t.Context(), err, progress)
			if f.Reason != tc.reason || f.Kind != tc.kind || f.Class != tc.class || f.Remedy == "" || f.Message == "" {
				t.Errorf("%s, %s, class %d (%q); want %s, %s, class %d and a remedy", f.Reason, f.Kind, f.Class, f.Message, tc.reason, tc.kind, tc.class)
			}
		})
	}
}

// A step that fails is the user's business, whatever its command line looks like.
func TestStepFailureIsTheUsers(t *testing.T) {
	for _, command := range []string{"curl: 403 Forbidden", "is not allowed", "no space left on device", "failed to push a: connection refused", "secret x: not found"} {
		err := &gatewaypb.ExitError{ExitCode: 1, Err: fmt.Errorf("process %q did not complete successfully: exit code: 1", command)}
		if f := FailureOf(t.Context(), err, nil); f.Reason != "STEP_FAILED" || f.Class != build.User || *f.ExitCode != 1 {
			t.Errorf("%s: %s, class %d", command, f.Reason, f.Class)
		}
	}
}

// The daemon's typed errors come through the wire and out again as it sent them,
// without stack traces, and not without bounds.
func TestDetails(t *testing.T) {
	id := digest.FromString("step")
	sent := stack.Enable(errdefs.WrapVertex(&gatewaypb.ExitError{ExitCode: 3, Err: errors.New("exit code: 3")}, id))
	received := grpcerrors.FromGRPC(grpcerrors.ToGRPC(t.Context(), sent))
	found := make(map[string]map[string]any)
	for _, d := range details(fmt.Errorf("failed to solve: %w", received)) {
		var value map[string]any
		if err := json.Unmarshal(d.Value, &value); err != nil {
			t.Fatal(err)
		}
		found[d.TypeURL] = value
	}
	if len(found) != 2 || found["github.com/moby/buildkit/errdefs.Vertex+json"]["digest"] != id.String() ||
		fmt.Sprint(found["github.com/moby/buildkit/gatewayapi.ExitMessage+json"]["Code"]) != "3" {
		t.Errorf("%v", found)
	}

	err := errors.New("x")
	for range 2 * maxDetails {
		err = errdefs.WrapVertex(err, id)
	}
	if n := len(details(err)); n != maxDetails {
		t.Errorf("%d details", n)
	}
	if n := len(details(errdefs.WrapVertex(errors.New("x"), digest.Digest(strings.Repeat("a", maxDetailBytes))))); n != 0 {
		t.Error("a detail without bounds is kept")
	}
}
