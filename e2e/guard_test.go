package e2e_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	"github.com/kilnbuild/kiln/pkg/testkit"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
)

// The stacks of these tests have the default policy, but for one address.
const (
	allowedAddr = "127.0.0.2"
	refusedAddr = "127.0.0.1"
)

// guardStack is a stack whose builder and daemon look names up at a server of the
// test's. allowed.example and refused.example lead to the two addresses,
// rebind.example to the allowed one until the test turns it.
type guardStack struct {
	*stack
	turned atomic.Bool
	port   string       // of the two servers
	asked  atomic.Int32 // requests to the server on the refused address
}

// newGuardStack serves allowed on the allowed address, and on the same port of the
// refused address what nobody may read.
func newGuardStack(t *testing.T, opts lab.StackOptions, allowed func(s *guardStack) http.Handler) *guardStack {
	t.Helper()
	s := new(guardStack)
	server := testkit.StartDNS(t, "127.0.0.9:53", func(name string) []netip.Addr {
		switch {
		case name == "allowed.example", name == "rebind.example" && !s.turned.Load():
			return []netip.Addr{netip.MustParseAddr(allowedAddr)}
		case name == "refused.example", name == "rebind.example":
			return []netip.Addr{netip.MustParseAddr(refusedAddr)}
		}
		return nil
	})
	host, _, _ := net.SplitHostPort(server)
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"resolv.conf": "nameserver " + host + "\n"})
	opts.ResolvConf = filepath.Join(dir, "resolv.conf")
	if opts.Builder == nil {
		opts.Builder = new(configv1.BuilderConfig)
	}
	opts.Builder.Policy = sourcesFrom(allowedAddr + "/32")
	s.stack = ownStack(t, opts)

	handler := allowed(s)
	_, s.port, _ = net.SplitHostPort(serveAt(t, allowedAddr+":0", handler))
	serveAt(t, refusedAddr+":"+s.port, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		if strings.HasPrefix(r.URL.Path, "/repo.git") {
			handler.ServeHTTP(w, r)
			return
		}
		_, _ = io.WriteString(w, "of nobody's business")
	}))
	return s
}

func serveAt(t *testing.T, address string, handler http.Handler) string {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: handler}} //nolint:gosec // a test's
	server.Start()
	t.Cleanup(server.Close)
	return listener.Addr().String()
}

// url is a URL of the port that both servers have.
func (s *guardStack) url(host, path string) string { return "http://" + host + ":" + s.port + path }

// add is a build that takes a file, or a repository, from a URL.
func add(url string, tags ...string) *builderv1.BuildSpec {
	return dockerfile("FROM scratch\nADD "+url+" /added\n", tags...)
}

// refuses fails the test unless a build, or its call, fails for a reason.
func (s *guardStack) refuses(t *testing.T, spec *builderv1.BuildSpec, reason errorsv1.Reason, says string) {
	t.Helper()
	r := s.build(t, spec)
	if r.err != nil {
		if status.Code(r.err) != codes.PermissionDenied || !strings.Contains(r.err.Error(), says) {
			t.Errorf("%v, want PERMISSION_DENIED with %q", r.err, says)
		}
		return
	}
	failure := detail[*errorsv1.BuildFailure](r.outcome.GetError())
	if failure.GetReason() != reason || !strings.Contains(r.outcome.GetError().GetMessage(), says) {
		t.Errorf("%v, want %s with %q", r.outcome, reason, says)
	}
	hasRemedy(t, r)
}

// TestSourcesByPolicy: git and ADD, which buildkitd fetches, by address, by name, by
// redirect and by a name that leads elsewhere when the daemon looks it up.
func TestSourcesByPolicy(t *testing.T) {
	var count atomic.Int32
	s := newGuardStack(t, lab.StackOptions{}, func(s *guardStack) http.Handler {
		repository, _ := gitHandler(t, s.base)
		mux := http.NewServeMux()
		mux.Handle("/repo.git/", repository)
		mux.HandleFunc("/file", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "content") })
		mux.HandleFunc("/to-file", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/file", http.StatusFound) })
		mux.HandleFunc("/to-refused", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, s.url(refusedAddr, "/file"), http.StatusFound)
		})
		mux.HandleFunc("/to-refused.git/", func(w http.ResponseWriter, r *http.Request) {
			path := strings.Replace(r.URL.RequestURI(), "/to-refused.git", "/repo.git", 1)
			http.Redirect(w, r, s.url(refusedAddr, path), http.StatusMovedPermanently)
		})
		mux.HandleFunc("/once", func(w http.ResponseWriter, r *http.Request) {
			if count.Add(1) > 1 { // The daemon comes after the builder.
				http.Redirect(w, r, s.url(refusedAddr, "/file"), http.StatusFound)
			}
		})
		mux.HandleFunc("/turn", func(w http.ResponseWriter, _ *http.Request) {
			s.turned.Store(true)
			_, _ = io.WriteString(w, "content")
		})
		return mux
	})

	t.Run("allowed", func(t *testing.T) {
		for name, path := range map[string]string{"file": "/file", "redirect": "/to-file"} {
			s.succeed(t, add(s.url("allowed.example", path), s.ref("added-"+name)))
			if got := file(t, s.ref("added-"+name), "", "/added"); got != "content" {
				t.Errorf("%s: /added is %q", name, got)
			}
		}
		s.succeed(t, git(s.url("allowed.example", "/repo.git"), "", s.ref("git")))
		s.succeed(t, add(s.url("allowed.example", "/repo.git"), s.ref("added-git")))
		if got := file(t, s.ref("added-git"), "", "/added/which"); got != "main" {
			t.Errorf("/added/which is %q", got)
		}
	})
	policy := errorsv1.Reason_REASON_POLICY_DENIED
	for name, spec := range map[string]*builderv1.BuildSpec{
		"git, address":  git(s.url(refusedAddr, "/repo.git"), ""),
		"git, name":     git(s.url("refused.example", "/repo.git"), ""),
		"git, redirect": git(s.url("allowed.example", "/to-refused.git"), ""),
		"git, ssh":      git("git@"+refusedAddr+":repo.git", ""),
		"ADD, address":  add(s.url(refusedAddr, "/file")),
		"ADD, name":     add(s.url("refused.example", "/file")),
		"ADD, number":   add(s.url("2130706433", "/file")),
		"ADD, mapped":   add(s.url("[::ffff:127.0.0.1]", "/file")),
		"ADD, redirect": add(s.url("allowed.example", "/to-refused")),
		"ADD, git":      add(s.url(refusedAddr, "/repo.git")),
		"ADD, pinned":   add("--checksum=sha256:" + strings.Repeat("0", 64) + " " + s.url(refusedAddr, "/file")),
	} {
		t.Run("refused, "+name, func(t *testing.T) { s.refuses(t, spec, policy, "policy does not allow") })
	}
	if n := s.asked.Load(); n != 0 {
		t.Errorf("the refused address was asked %d times", n)
	}
	// Now the daemon comes there, and nobody gets to see what it reads.
	mismatch := errorsv1.Reason_REASON_DIGEST_MISMATCH
	t.Run("ADD, another redirect for the daemon", func(t *testing.T) {
		s.refuses(t, add(s.url("allowed.example", "/once")), mismatch, "other content")
	})
	t.Run("ADD, rebinding", func(t *testing.T) {
		s.refuses(t, add(s.url("rebind.example", "/turn")), mismatch, "other content")
		if !s.turned.Load() {
			t.Error("the name has not turned")
		}
	})
}

// TestEgressProxy: with it, what the daemon looks up by itself is judged when it is
// dialled, and the refused address is never asked.
func TestEgressProxy(t *testing.T) {
	address := labtest.Must(lab.FreeAddr())(t)
	proxy := "http://" + address
	s := newGuardStack(t, lab.StackOptions{
		Builder:   &configv1.BuilderConfig{Egress: &configv1.EgressConfig{Listen: address}},
		Buildkitd: lab.BuildkitdOptions{Env: []string{"HTTP_PROXY=" + proxy, "http_proxy=" + proxy, "HTTPS_PROXY=" + proxy, "https_proxy=" + proxy}},
	}, func(s *guardStack) http.Handler {
		repository, _ := gitHandler(t, s.base)
		mux := http.NewServeMux()
		mux.Handle("/repo.git/", repository)
		mux.HandleFunc("/turn.git/", func(w http.ResponseWriter, r *http.Request) {
			s.turned.Store(true)
			r.URL.Path = strings.Replace(r.URL.Path, "/turn.git", "/repo.git", 1)
			repository.ServeHTTP(w, r)
		})
		mux.HandleFunc("/turn", func(w http.ResponseWriter, _ *http.Request) {
			s.turned.Store(true)
			_, _ = io.WriteString(w, "content")
		})
		return mux
	})
	s.succeed(t, git(s.url("allowed.example", "/repo.git"), "", s.ref("git")))
	for name, spec := range map[string]*builderv1.BuildSpec{
		"git": git(s.url("rebind.example", "/turn.git"), ""),
		"ADD": add(s.url("rebind.example", "/turn")),
	} {
		t.Run(name, func(t *testing.T) {
			s.turned.Store(false)
			r, failure := s.fail(t, spec)
			if !s.turned.Load() || failure.GetReason() == errorsv1.Reason_REASON_INTERNAL {
				t.Errorf("turned %t: %v", s.turned.Load(), r.outcome)
			}
		})
	}
	if n := s.asked.Load(); n != 0 {
		t.Errorf("the refused address was asked %d times", n)
	}
	// Git fetches submodules without a question to anybody.
	s.refuses(t, git(s.url("allowed.example", "/repo.git"), "submodule"), errorsv1.Reason_REASON_POLICY_DENIED, submoduleURL)
	for _, refused := range []string{"rebind.example:" + s.port, submoduleURL} {
		if log := s.Builder.Output(); !strings.Contains(log, "refused to reach a host") || !strings.Contains(log, refused) {
			t.Errorf("the builder's log does not say that it refused %s", refused)
		}
	}
}

// TestUpFetchesThroughTheProxy: builds by the gateway too, which the builder passes
// on unread, reach no metadata service.
func TestUpFetchesThroughTheProxy(t *testing.T) {
	l := labtest.New(t)
	up := startUp(t, l, lab.UpOptions{})
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM scratch\nADD http://169.254.169.254/latest/meta-data /added\n"})
	_, err := lab.Exec(labtest.Context(t, time.Minute), buildctl(t, "tcp://"+up.Builder, dir))
	if err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("error %v", err)
	}
	log := string(labtest.Must(os.ReadFile(filepath.Join(up.DataDir, "logs", "builder.log")))(t))
	if !strings.Contains(log, "of a cloud's metadata service") {
		t.Errorf("the builder's log does not say that it refused:\n%s", log)
	}
}
