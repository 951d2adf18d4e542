package buildkit

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/sourcepolicy/policysession"
	"github.com/opencontainers/go-digest"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/testkit"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/guard"
)

// The address that the policy of these tests allows, and one that it does not.
const (
	allowedAddr = "127.0.0.2"
	refusedAddr = "127.0.0.1"
)

func testPolicy(secrets ...build.Secret) *sourcePolicy {
	return newSourcePolicy(guard.New(guard.Policy{
		Schemes:  []string{"http", "https", "ssh", "git"},
		Networks: []netip.Prefix{netip.MustParsePrefix(allowedAddr + "/32")},
	}, slog.New(slog.DiscardHandler)), secrets...)
}

// ask asks a policy as the daemon does: again with what it was told to convert.
func ask(t *testing.T, p *sourcePolicy, identifier string, attrs map[string]string) (spb.PolicyAction, map[string]string) {
	t.Helper()
	source := &pb.SourceOp{Identifier: identifier, Attrs: attrs}
	for range 3 {
		decision, request, err := p.check(t.Context(), &policysession.CheckPolicyRequest{
			Source: &gatewaypb.ResolveSourceMetaResponse{Source: source},
		})
		if err != nil || request != nil {
			t.Fatalf("%v %v", request, err)
		}
		if decision.Action != spb.PolicyAction_CONVERT {
			return decision.Action, source.Attrs
		}
		source = decision.Update
	}
	t.Fatal("it converts without end")
	return 0, nil
}

func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", addr+":0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

func serveHTTP(t *testing.T, addr string, handler http.HandlerFunc) string {
	t.Helper()
	server := &httptest.Server{Listener: listen(t, addr), Config: &http.Server{Handler: handler}} //nolint:gosec // a test's
	server.Start()
	t.Cleanup(server.Close)
	return server.URL
}

func TestHTTPSourcesArePinned(t *testing.T) {
	testkit.VerifyNoLeaks(t)
	victim := serveHTTP(t, refusedAddr, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("the refused host was asked for %s", r.URL) })
	var asked atomic.Int32
	url := serveHTTP(t, allowedAddr, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		switch r.URL.Path {
		case "/file":
			_, _ = io.WriteString(w, "content")
		case "/accept":
			_, _ = io.WriteString(w, r.Header.Get("Accept"))
		case "/secret":
			if r.Header.Get("Authorization") != "Bearer hunter2" {
				w.WriteHeader(http.StatusUnauthorized)
			}
		case "/to-file":
			http.Redirect(w, r, "/file", http.StatusFound)
		case "/to-victim":
			http.Redirect(w, r, victim, http.StatusFound)
		default:
			http.NotFound(w, r)
		}
	})
	pin := func(text string) string { return digest.FromString(text).String() }
	for name, tc := range map[string]struct {
		url    string
		attrs  map[string]string
		pin    string // "": denied
		reason string
	}{
		"pinned":                 {url + "/file", nil, pin("content"), ""},
		"at the end of the way":  {url + "/to-file", nil, pin("content"), ""},
		"as the daemon asks":     {url + "/accept", map[string]string{"http.header.accept": "text/x"}, pin("text/x"), ""},
		"with credentials":       {url + "/secret", nil, pin(""), ""},
		"with a named secret":    {url + "/secret", map[string]string{pb.AttrHTTPAuthHeaderSecret: "token"}, pin(""), ""},
		"with a wrong one":       {url + "/secret", map[string]string{pb.AttrHTTPAuthHeaderSecret: "none"}, "", "SOURCE_DENIED"},
		"with a checksum":        {url + "/file", map[string]string{pb.AttrHTTPChecksum: pin("other")}, pin("other"), ""},
		"with a checksum, gone":  {url + "/none", map[string]string{pb.AttrHTTPChecksum: pin("other")}, pin("other"), ""},
		"not there":              {url + "/none?hunter2", nil, "", "SOURCE_NOT_FOUND"},
		"no server":              {"http://" + allowedAddr + ":1/?hunter2", nil, "", "SOURCE_NOT_FOUND"},
		"refused":                {victim + "/a?hunter2", nil, "", "POLICY_DENIED"},
		"refused, by a redirect": {url + "/to-victim", nil, "", "POLICY_DENIED"},
		"refused, pinned":        {url + "/to-victim", map[string]string{pb.AttrHTTPChecksum: pin("x")}, "", "POLICY_DENIED"},
	} {
		t.Run(name, func(t *testing.T) {
			p := testPolicy(build.Secret{ID: "HTTP_AUTH_TOKEN_" + allowedAddr, Value: []byte("hunter2")}, build.Secret{ID: "token", Value: []byte("Bearer hunter2")})
			before := asked.Load()
			action, attrs := ask(t, p, tc.url, tc.attrs)
			if tc.pin != "" {
				if action != spb.PolicyAction_ALLOW || attrs[pb.AttrHTTPChecksum] != tc.pin {
					t.Errorf("%v %v, want %s", action, attrs, tc.pin)
				}
				count := asked.Load()
				if ask(t, p, tc.url, tc.attrs); asked.Load() != count || count == before {
					t.Error("it was fetched again, or never")
				}
				return
			}
			f := p.denied()
			if action != spb.PolicyAction_DENY || f == nil || f.Reason != tc.reason {
				t.Fatalf("%v %v, want %s", action, f, tc.reason)
			}
			if !strings.Contains(f.Error(), "127.0.0.") || strings.Contains(fault.Line(f), "hunter2") {
				t.Errorf("it says: %s", fault.Line(f))
			}
		})
	}
}

func TestOtherSources(t *testing.T) {
	for identifier, want := range map[string]spb.PolicyAction{
		"docker-image://localhost:5000/a:1": spb.PolicyAction_ALLOW,
		"oci-layout://a@sha256:x":           spb.PolicyAction_ALLOW,
		"local://context":                   spb.PolicyAction_ALLOW,
		"blob://a":                          spb.PolicyAction_DENY,
		"ftp://example.org/":                spb.PolicyAction_DENY,
		"":                                  spb.PolicyAction_DENY,
	} {
		if got, _ := ask(t, testPolicy(), identifier, nil); got != want {
			t.Errorf("%q: %v", identifier, got)
		}
	}
}

func TestGitSources(t *testing.T) {
	testkit.VerifyNoLeaks(t)
	victim := serveHTTP(t, refusedAddr, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("the refused host was asked for %s", r.URL) })
	url := serveHTTP(t, allowedAddr, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/to-victim/info/refs") {
			http.Redirect(w, r, victim, http.StatusMovedPermanently)
		}
	})
	host := strings.TrimPrefix(url, "http://")
	away := strings.TrimPrefix(victim, "http://")
	for name, tc := range map[string]struct {
		identifier, remote string
		want               spb.PolicyAction
	}{
		"allowed":                      {"git://" + host + "/repo#main:sub", url + "/repo", spb.PolicyAction_ALLOW},
		"no server":                    {"git://" + allowedAddr + ":1/repo", "", spb.PolicyAction_ALLOW}, // The daemon says so.
		"git":                          {"git://" + host + "/repo", "git://" + host + "/repo", spb.PolicyAction_ALLOW},
		"refused":                      {"git://" + away + "/repo", victim + "/repo", spb.PolicyAction_DENY},
		"refused, git":                 {"git://" + away + "/repo", "git://" + away + "/repo", spb.PolicyAction_DENY},
		"refused, ssh":                 {"git://" + refusedAddr + "/repo", "git@" + refusedAddr + ":repo", spb.PolicyAction_DENY},
		"refused, no full URL":         {"git://" + away + "/repo", "", spb.PolicyAction_DENY},
		"refused, a scheme in the id":  {"git://http://" + away + "/repo", "", spb.PolicyAction_DENY},
		"refused, by a redirect":       {"git://" + host + "/to-victim", url + "/to-victim/", spb.PolicyAction_DENY},
		"refused, behind a fragment":   {"git://" + away + "/repo", victim + "/repo#" + host, spb.PolicyAction_DENY},
		"refused, not what it is read": {"git://" + host + "/repo", `http://` + host + `\@` + away + `/repo`, spb.PolicyAction_DENY},
		"a file":                       {"git://" + host + "/repo", "file:///etc", spb.PolicyAction_DENY},
		"a helper":                     {"git://" + host + "/repo", "ext::sh -c id", spb.PolicyAction_DENY},
	} {
		t.Run(name, func(t *testing.T) {
			attrs := make(map[string]string)
			if tc.remote != "" {
				attrs[pb.AttrFullRemoteURL] = tc.remote
			}
			p := testPolicy()
			if got, _ := ask(t, p, tc.identifier, attrs); got != tc.want {
				t.Errorf("%v: %v", got, p.denied())
			}
		})
	}
}

// sshServer shows a key to whoever comes, and lets nobody in.
func sshServer(t *testing.T, addr string) (address string, key ssh.PublicKey) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	config := &ssh.ServerConfig{PasswordCallback: func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) { return nil, errors.New("no") }}
	config.AddHostKey(signer)
	listener := listen(t, addr)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _, _, _ = ssh.NewServerConn(conn, config)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = listener.Close(); <-done })
	return listener.Addr().String(), signer.PublicKey()
}

func TestSSHHostsAreHeldToTheirKey(t *testing.T) {
	testkit.VerifyNoLeaks(t)
	address, key := sshServer(t, allowedAddr)
	_, other := sshServer(t, allowedAddr)
	refused, _ := sshServer(t, refusedAddr)
	line := knownhosts.Line([]string{address}, key)
	git := func(known, address string) (spb.PolicyAction, string, *fault.Error) {
		p := testPolicy()
		attrs := map[string]string{pb.AttrFullRemoteURL: "ssh://git@" + address + "/repo", pb.AttrKnownSSHHosts: known}
		action, attrs := ask(t, p, "git://"+address+"/repo", attrs)
		return action, attrs[pb.AttrKnownSSHHosts], p.denied()
	}
	for name, tc := range map[string]struct {
		known, address string
		want           spb.PolicyAction
		reason         string
	}{
		"the builder's own":      {noHostKey, address, spb.PolicyAction_ALLOW, ""},
		"of a frontend":          {line, address, spb.PolicyAction_ALLOW, ""},
		"with another beside it": {knownhosts.Line([]string{address}, other) + "\n" + line, address, spb.PolicyAction_ALLOW, ""},
		"of another host":        {knownhosts.Line([]string{address}, other), address, spb.PolicyAction_DENY, "POLICY_DENIED"},
		"no key at all":          {"x", address, spb.PolicyAction_DENY, "POLICY_DENIED"},
		"refused":                {noHostKey, refused, spb.PolicyAction_DENY, "POLICY_DENIED"},
		"no server":              {noHostKey, allowedAddr + ":1", spb.PolicyAction_DENY, "SOURCE_NOT_FOUND"},
	} {
		t.Run(name, func(t *testing.T) {
			got, known, denied := git(tc.known, tc.address)
			if got != tc.want || (got == spb.PolicyAction_ALLOW && !strings.Contains(known, line)) {
				t.Errorf("%v, %q", got, known)
			}
			if got == spb.PolicyAction_DENY && (denied == nil || denied.Reason != tc.reason) {
				t.Errorf("denied by %v, want %s", denied, tc.reason)
			}
		})
	}
}

// llb.Git asks ssh hosts for their key by itself, wherever they are.
func TestPreparingAGitContextAsksNoHost(t *testing.T) {
	listener := listen(t, refusedAddr)
	came := make(chan struct{})
	go func() {
		if conn, err := listener.Accept(); err == nil {
			_ = conn.Close()
			close(came)
		}
	}()
	opt := optOf(t, build.Spec{Project: "p", Context: build.Context{Git: &build.GitContext{URL: "ssh://git@" + listener.Addr().String() + "/repo"}}})
	definition, err := opt.FrontendInputs[contextName].Marshal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = listener.Close()
	select {
	case <-came:
		t.Error("the host was asked")
	default:
	}
	if !slices.ContainsFunc(definition.Def, func(op []byte) bool { return strings.Contains(string(op), noHostKey) }) {
		t.Error("the source does not wait for the key")
	}
}

func TestExplain(t *testing.T) {
	url := serveHTTP(t, allowedAddr, func(http.ResponseWriter, *http.Request) {})
	for name, tc := range map[string]struct {
		source, text string
		want         string
	}{
		"denied":             {"http://" + refusedAddr + "/", "failed to load LLB", "POLICY_DENIED"},
		"by the proxy":       {url, "git stderr:\nremote: the builder's policy does not allow http://10.0.0.1/: …", "POLICY_DENIED"},
		"other content":      {url, "failed to solve: digest mismatch sha256:1: sha256:2", "DIGEST_MISMATCH"},
		"nothing was pinned": {"docker-image://a", "digest mismatch sha256:1: sha256:2", ""},
		"something else":     {url, "exit code: 1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := testPolicy()
			ask(t, p, tc.source, nil)
			f, _ := errors.AsType[*fault.Error](p.explain(errors.New(tc.text)))
			if f == nil && tc.want != "" || f != nil && (f.Reason != tc.want || f.Remedy == "") {
				t.Errorf("%#v, want %s", f, tc.want)
			}
		})
	}
}
