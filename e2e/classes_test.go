package e2e_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/kilnbuild/kiln/e2e/lab"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
)

// Short names of what a failure is.
const (
	byUser  = errorsv1.FailureClass_FAILURE_CLASS_USER
	byInfra = errorsv1.FailureClass_FAILURE_CLASS_INFRASTRUCTURE

	notFound     = errorsv1.Reason_REASON_SOURCE_NOT_FOUND
	sourceDenied = errorsv1.Reason_REASON_SOURCE_DENIED
	registryGone = errorsv1.Reason_REASON_REGISTRY_UNAVAILABLE
	exportFailed = errorsv1.Reason_REASON_EXPORT_FAILED
	diskFull     = errorsv1.Reason_REASON_DISK_FULL
)

// answering is the host of a registry or web server that answers everything with a
// status.
func answering(t *testing.T, status int) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		}
		http.Error(w, http.StatusText(status), status)
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

const nobody = "127.0.0.1:1" // where nothing listens

// Whose business a failure is, and which, by what the daemon meets: each kind of
// source and of export, and each way in which it can fail.
func TestFailuresAreToldApart(t *testing.T) {
	s := sharedStack(t)
	from := func(host string) *builderv1.BuildSpec { return dockerfile("FROM " + host + "/a/b:1\nRUN true\n") }
	add := func(host string) *builderv1.BuildSpec {
		return dockerfile("FROM scratch\nADD http://" + host + "/file /\n")
	}
	repo := func(host string) *builderv1.BuildSpec { return git("http://"+host+"/a/b.git", "main") }
	pushing := func(host string) *builderv1.BuildSpec {
		return dockerfile("FROM scratch\nCOPY <<END /x\n"+unique()+"\nEND\n", host+"/a/b:1")
	}
	caching := func(host string) *builderv1.BuildSpec {
		spec := dockerfile("FROM " + s.base + "\nRUN echo " + unique() + "\n")
		spec.Cache = &builderv1.CachePolicy{
			Mode:    builderv1.CacheMode_CACHE_MODE_EXPLICIT,
			Exports: []*builderv1.CacheEntry{{Type: "registry", Attributes: map[string]string{"ref": host + "/a/cache:1", "mode": "max"}}},
		}
		return spec
	}
	away, broken, missing := nobody, answering(t, http.StatusBadGateway), answering(t, http.StatusNotFound)
	unknown, forbidden := answering(t, http.StatusUnauthorized), answering(t, http.StatusForbidden)
	for name, tc := range map[string]struct {
		spec   *builderv1.BuildSpec
		reason errorsv1.Reason
		class  errorsv1.FailureClass
		code   codes.Code
		text   string
	}{
		"image, nobody there":   {from(away), registryGone, byInfra, codes.Unavailable, ""},
		"image, server broken":  {from(broken), registryGone, byInfra, codes.Unavailable, ""},
		"image, missing":        {from(missing), notFound, byUser, codes.NotFound, ""},
		"image, no credentials": {from(unknown), sourceDenied, byUser, codes.PermissionDenied, ""},
		"image, forbidden":      {from(forbidden), sourceDenied, byUser, codes.PermissionDenied, ""},
		"ADD, nobody there":     {add(away), notFound, byInfra, codes.Unavailable, ""},
		"ADD, server broken":    {add(broken), notFound, byInfra, codes.Unavailable, ""},
		"ADD, missing":          {add(missing), notFound, byUser, codes.NotFound, ""},
		"ADD, forbidden":        {add(forbidden), sourceDenied, byUser, codes.PermissionDenied, ""},
		"git, nobody there":     {repo(away), notFound, byInfra, codes.Unavailable, ""},
		"git, missing":          {repo(missing), notFound, byUser, codes.NotFound, ""},
		"git, no credentials":   {repo(unknown), sourceDenied, byUser, codes.PermissionDenied, ""},
		"git, forbidden":        {repo(forbidden), sourceDenied, byUser, codes.PermissionDenied, ""},
		"push, nobody there":    {pushing(away), registryGone, byInfra, codes.Unavailable, "pushing the image failed"},
		"push, server broken":   {pushing(broken), registryGone, byInfra, codes.Unavailable, "pushing the image failed"},
		"push, forbidden":       {pushing(forbidden), exportFailed, byUser, codes.PermissionDenied, "pushing the image failed"},
		"push, no credentials":  {pushing(unknown), exportFailed, byUser, codes.PermissionDenied, "pushing the image failed"},
		"cache, nobody there":   {caching(away), registryGone, byInfra, codes.Unavailable, "exporting the cache failed"},
		"cache, server broken":  {caching(broken), registryGone, byInfra, codes.Unavailable, "exporting the cache failed"},
		"cache, forbidden":      {caching(forbidden), exportFailed, byUser, codes.PermissionDenied, "exporting the cache failed"},
	} {
		t.Run(name, func(t *testing.T) {
			r, failure := s.fail(t, tc.spec)
			if failure.GetReason() != tc.reason || failure.GetClass() != tc.class || r.outcome.GetError().GetCode() != int32(tc.code) {
				t.Errorf("%s, %s, %s; want %s, %s, %s:\n%s", failure.GetReason(), failure.GetClass(), codes.Code(r.outcome.GetError().GetCode()),
					tc.reason, tc.class, tc.code, r.outcome.GetError().GetMessage())
			}
			if !strings.Contains(r.outcome.GetError().GetMessage(), tc.text) {
				t.Errorf("no %q in %q", tc.text, r.outcome.GetError().GetMessage())
			}
			hasRemedy(t, r)
		})
	}
}

// A daemon whose disk is full says so, wherever it meets it.
func TestDiskFull(t *testing.T) {
	root := t.TempDir()
	if err := syscall.Mount("tmpfs", root, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(root, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := ownStack(t, lab.StackOptions{Buildkitd: lab.BuildkitdOptions{Root: root}})
	context := s.dir(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY . /\n"})
	if err := os.WriteFile(filepath.Join(context, "big"), []byte(strings.Repeat(unique(), 2<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, spec := range map[string]*builderv1.BuildSpec{
		"in a step":    dockerfile("FROM " + s.base + "\nRUN dd if=/dev/urandom of=/big bs=1M count=64\n"),
		"of a context": directory(context),
	} {
		t.Run(name, func(t *testing.T) {
			r, failure := s.fail(t, spec)
			if failure.GetReason() != diskFull || failure.GetClass() != byInfra || r.outcome.GetError().GetCode() != int32(codes.ResourceExhausted) {
				t.Errorf("%v", r.outcome.GetError())
			}
			hasRemedy(t, r)
		})
	}
}

// The typed details of the daemon's error come along, without its stack traces.
func TestDaemonDetails(t *testing.T) {
	s := sharedStack(t)
	_, failure := s.fail(t, dockerfile("FROM "+s.base+"\nRUN exit 7\n"))
	found := map[string]string{}
	for _, d := range failure.GetDaemonDetails() {
		found[d.GetTypeUrl()] = string(d.GetValue())
	}
	if vertex := found["github.com/moby/buildkit/errdefs.Vertex+json"]; !strings.Contains(vertex, failure.GetStepDigest()) {
		t.Errorf("the vertex is %q", vertex)
	}
	if exit := found["github.com/moby/buildkit/gatewayapi.ExitMessage+json"]; !strings.Contains(exit, "7") {
		t.Errorf("the exit code is %q", exit)
	}
	for kind := range found {
		if strings.Contains(kind, "stack.Stack") {
			t.Errorf("a stack trace: %s", kind)
		}
	}
}
