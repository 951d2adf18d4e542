package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// verified reports whether a certificate is one of a server with a name, or of a client, for
// who trusts a file of authorities.
func verified(t *testing.T, s store, name, host string, ca []byte) bool {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(s.cert(name), s.key(name))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	usage := x509.ExtKeyUsageClientAuth
	if host != "" {
		usage = x509.ExtKeyUsageServerAuth
	}
	_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host, KeyUsages: []x509.ExtKeyUsage{usage}})
	return err == nil
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestIssueAndRotate(t *testing.T) {
	s := store{filepath.Join(t.TempDir(), "certs")}
	if err := s.issue(subject{name: "early"}, day, false); fault.KindOf(err) != fault.NotFound {
		t.Errorf("without an authority: %v", err)
	}
	if err := s.init("test", 10*day); err != nil {
		t.Fatal(err)
	}
	if err := s.init("test", 10*day); fault.KindOf(err) != fault.AlreadyExists {
		t.Errorf("a second authority: %v", err)
	}
	server, client := subject{name: "builder", hosts: []string{"builder.example.org", "10.0.0.1"}}, subject{name: "ci", uris: []string{"spiffe://example.org/ci"}}
	if err := errors.Join(s.issue(server, 100*day, false), s.issue(client, day, false)); err != nil {
		t.Fatal(err)
	}
	ca := read(t, s.cert(authorityName))
	for _, c := range []struct {
		name, host string
		want       bool
	}{{"builder", "builder.example.org", true}, {"builder", "10.0.0.1", true}, {"builder", "other.example.org", false}, {"builder", "", true}, {"ci", "", true}, {"ci", "ci", false}} {
		if got := verified(t, s, c.name, c.host, ca); got != c.want {
			t.Errorf("%s for %q: %v", c.name, c.host, got)
		}
	}
	for file, mode := range map[string]os.FileMode{s.key(authorityName): 0o600, s.key("ci"): 0o600, s.cert("ci"): 0o644} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", file, info.Mode(), err)
		}
	}
	// None outlives its authority.
	certs, err := readCerts(s.cert("builder"))
	if err != nil || time.Until(certs[0].NotAfter) > 10*day {
		t.Errorf("%v, %v", certs[0].NotAfter, err)
	}

	before := read(t, s.cert("builder"))
	if renewed, err := s.rotate(nil, nearness{2 * day, true}); err != nil || !slices.Equal(renewed, []string{"ci"}) {
		t.Errorf("what ends soon: %v, %v", renewed, err)
	}
	if renewed, err := s.rotate([]string{"builder"}, nearness{}); err != nil || !slices.Equal(renewed, []string{"builder"}) {
		t.Errorf("by name: %v, %v", renewed, err)
	}
	if slices.Equal(before, read(t, s.cert("builder"))) || !verified(t, s, "builder", "builder.example.org", ca) {
		t.Error("the renewed one is the old one, or of another name")
	}
	if _, err := s.rotate([]string{"nobody"}, nearness{}); fault.KindOf(err) != fault.NotFound {
		t.Errorf("of nobody: %v", err)
	}
	for _, name := range []string{"ca", "", "../x", "a b"} {
		if err := s.issue(subject{name: name}, day, true); fault.KindOf(err) != fault.InvalidArgument {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := s.issue(subject{name: "bad", uris: []string{"no uri"}}, day, false); err == nil {
		t.Error("a URI that is none was taken")
	}
}

// A certificate of a short life is renewed when most of it is over, or when that is asked for; and it is said who
// must be restarted to use it.
func TestRotate_LeavesNewCertificatesOfAShortLife(t *testing.T) {
	s := store{t.TempDir()}
	server, client := subject{name: "registry", hosts: []string{"localhost"}}, subject{name: "ci"}
	if err := errors.Join(s.init("test", 100*day), s.issue(server, 7*day, false), s.issue(client, 7*day, false)); err != nil {
		t.Fatal(err)
	}
	if renewed, err := s.rotate(nil, nearness{within: defaultWithin}); err != nil || len(renewed) != 0 {
		t.Errorf("renewed on their first day: %v, %v", renewed, err)
	}
	renewed, err := s.rotate(nil, nearness{30 * day, true})
	if err != nil || len(renewed) != 2 {
		t.Errorf("asked for: %v, %v", renewed, err)
	}
	if text := s.restarts(renewed, false); !strings.Contains(text, "uses registry, restart it") || strings.Contains(text, "ci") {
		t.Errorf("%q", text)
	}
	if text := s.restarts([]string{"ci"}, false); text != "" {
		t.Errorf("of a client: %q", text)
	}
	if text := s.restarts(renewed, true); !strings.Contains(text, "ca.crt") {
		t.Errorf("of the authority: %q", text)
	}
}

// Who has the new authorities trusts what the old one has signed, and what the new one has.
func TestRotateAuthority(t *testing.T) {
	s := store{t.TempDir()}
	if err := errors.Join(s.init("test", 10*day), s.issue(subject{name: "a", hosts: []string{"a"}}, day, false)); err != nil {
		t.Fatal(err)
	}
	old := store{t.TempDir()}
	oldCA := read(t, s.cert(authorityName))
	for _, file := range []string{"a.crt", "a.key"} {
		if err := os.WriteFile(filepath.Join(old.dir, file), read(t, filepath.Join(s.dir, file)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if renewed, err := s.rotateAuthority(t.Context()); err != nil || !slices.Equal(renewed, []string{"a"}) {
		t.Fatalf("%v, %v", renewed, err)
	}
	both := read(t, s.cert(authorityName))
	if !verified(t, old, "a", "a", both) || !verified(t, s, "a", "a", both) || verified(t, s, "a", "a", oldCA) {
		t.Error("the old certificate, or the new one, is not trusted as it should be")
	}
}
