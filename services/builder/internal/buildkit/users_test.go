package buildkit

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/moby/buildkit/session/auth"

	"github.com/kilnbuild/kiln/pkg/fault"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// tokens is a token server that gives a token to anybody, and notes who asked for what.
type tokens struct {
	mu    sync.Mutex
	asked []string // "user scopes"
}

func (s *tokens) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	user, _, _ := r.BasicAuth()
	if name := r.Form.Get("username"); name != "" {
		user = name
	}
	s.mu.Lock()
	s.asked = append(s.asked, strings.TrimSpace(user+" "+strings.Join(r.Form["scope"], " ")))
	s.mu.Unlock()
	_, _ = w.Write([]byte(`{"token":"t","access_token":"t"}`))
}

// lending is the builder's users of two hosts, lent for the repositories of one project.
func lending(t *testing.T, rights string) *users {
	t.Helper()
	t.Setenv("HOME", t.TempDir()) // where BuildKit keeps its seeds
	t.Setenv("DOCKER_CONFIG", filepath.Join(os.Getenv("HOME"), "docker"))
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	u := newUsers([]*configv1.RegistryLogin{
		{Host: "registry.example", Username: "builder", PasswordFile: password},
		{Host: "docker.io", Username: "hub", PasswordFile: password},
	})
	if rights != "" {
		u.lend([]byte(rights), func(repository string, push bool) bool {
			return strings.HasPrefix(repository, "registry.example/web/") || !push && repository == "docker.io/team/base"
		})
	}
	return u
}

func TestFetchToken_LendsUsersPerRepository(t *testing.T) {
	for name, test := range map[string]struct {
		rights, host string
		scopes       []string
		want         string
	}{
		"without rules":            {"", "registry.example", []string{"repository:payroll:pull"}, "builder repository:payroll:pull"},
		"what the rules name":      {"r", "registry.example", []string{"repository:web/app:pull,push"}, "builder repository:web/app:pull,push"},
		"another's repository":     {"r", "registry.example", []string{"repository:payroll:pull"}, "repository:payroll:pull"},
		"a push with a mount":      {"r", "registry.example", []string{"repository:payroll:pull", "repository:web/app:pull,push"}, "builder repository:web/app:pull,push"},
		"docker.io by its API":     {"r", "registry-1.docker.io", []string{"repository:team/base:pull"}, "hub repository:team/base:pull"},
		"no push where pulls only": {"r", "registry-1.docker.io", []string{"repository:team/base:pull,push"}, "repository:team/base:pull,push"},
		"the catalog":              {"r", "registry.example", []string{"registry:catalog:*"}, "registry:catalog:*"},
		"a host without a user":    {"r", "other.example", []string{"repository:x:pull"}, "repository:x:pull"},
	} {
		t.Run(name, func(t *testing.T) {
			issuer := &tokens{}
			server := httptest.NewServer(issuer)
			defer server.Close()
			u := lending(t, test.rights)
			if _, err := u.FetchToken(t.Context(), &auth.FetchTokenRequest{Host: test.host, Realm: server.URL, Service: "s", Scopes: test.scopes}); err != nil {
				t.Fatal(err)
			}
			got := strings.Join(issuer.asked, "; ")
			if got != test.want {
				t.Errorf("asked as %q, want %q", got, test.want)
			}
		})
	}
}

// With basic authentication a user is of a whole host: it is lent to a job that reads
// only what its rules allow, and no image is read with it that they do not.
func TestCredentials_AreWithheldFromJobsThatReadMore(t *testing.T) {
	userOf := func(u *users, host string) string {
		res, err := u.Credentials(t.Context(), &auth.CredentialsRequest{Host: host})
		if err != nil {
			t.Fatal(err)
		}
		return res.GetUsername()
	}
	u := lending(t, "r")
	if err := u.reads("registry.example/payroll:1"); err != nil {
		t.Errorf("an image before its user was lent may be public: %v", err)
	}
	if got := userOf(u, "registry.example"); got != "" || u.denied() == nil {
		t.Errorf("lent %q to a job that reads another's image", got)
	}
	u = lending(t, "r")
	if err := u.reads("registry.example/web/base:1"); err != nil {
		t.Error(err)
	}
	if got := userOf(u, "registry.example"); got != "builder" {
		t.Errorf("lent %q to a job that reads its own images", got)
	}
	if err := u.reads("registry.example/payroll:1"); fault.KindOf(err) != fault.PermissionDenied {
		t.Errorf("another's image is read with the user that was lent: %v", err)
	}
	if err := u.reads("other.example/x"); err != nil {
		t.Errorf("an image of a host without a user: %v", err)
	}
	if got := userOf(lending(t, ""), "registry.example"); got != "builder" {
		t.Errorf("without rules, lent %q", got)
	}
}

// BuildKit gives the tokens of a session to all that prove to have the same user.
func TestTokenAuthority_DiffersBetweenRules(t *testing.T) {
	of := func(rights string) []byte {
		u := lending(t, rights)
		t.Setenv("DOCKER_CONFIG", filepath.Join(os.TempDir(), "kiln-test-authority"))
		res, err := u.GetTokenAuthority(t.Context(), &auth.GetTokenAuthorityRequest{Host: "registry.example", Salt: []byte("salt")})
		if err != nil {
			t.Fatal(err)
		}
		return res.GetPublicKey()
	}
	if bytes.Equal(of("a"), of("b")) || bytes.Equal(of("a"), of("")) {
		t.Error("jobs under other rules have the same key, and BuildKit would share their tokens")
	}
	if !bytes.Equal(of("a"), of("a")) {
		t.Error("jobs under the same rules share no tokens")
	}
}
