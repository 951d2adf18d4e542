package buildkit

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/docker/cli/cli/config/types"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/auth/authprovider"
	"google.golang.org/grpc"

	"github.com/kilnbuild/kiln/pkg/fault"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// users lends the builder's users of registries to the daemon for one job: as much as
// the rules of the build's caller allow, per repository.
//
// A registry that issues tokens is asked for tokens of the allowed repositories only.
// A registry with basic authentication knows no repositories: its user is lent for the
// whole host unless the job reads a repository of the host for which it may not be.
//
// BuildKit shares tokens between sessions that prove to have the same user. The proofs
// of jobs under different rules therefore differ (see salted).
type users struct {
	auth.AuthServer // asks as the builder's users
	anonymous       auth.AuthServer
	logins          []*configv1.RegistryLogin

	mu       sync.Mutex
	bounded  bool                                    // lend was called with rules
	allowed  func(repository string, push bool) bool // by those rules
	rights   []byte                                  // the same for the same rules only
	lent     map[string]bool                         // hosts whose user went to the daemon as a whole
	withheld map[string]string                       // hosts whose user does not, and the repository because of which
	refusal  *fault.Error                            // why a user was not lent
}

// newUsers lends all logins to all repositories until lend bounds it.
func newUsers(logins []*configv1.RegistryLogin) *users {
	asServer := func(logins []*configv1.RegistryLogin) auth.AuthServer {
		server, _ := authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{
			AuthConfigProvider: func(
				_ context.Context, host string, _ []string, _ authprovider.ExpireCachedAuthCheck,
			) (types.AuthConfig, error) {
				return passwordOf(logins, host)
			},
		}).(auth.AuthServer)
		return server
	}
	return &users{
		AuthServer: asServer(logins), anonymous: asServer(nil), logins: logins,
		lent: make(map[string]bool), withheld: make(map[string]string),
	}
}

// lend bounds what is lent to the repositories that allowed reports. rights tells sets
// of rules apart.
func (u *users) lend(rights []byte, allowed func(repository string, push bool) bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.bounded, u.rights, u.allowed = true, rights, allowed
}

// Register implements session.Attachable.
func (u *users) Register(server *grpc.Server) { auth.RegisterAuthServer(server, u) }

// Credentials implements auth.AuthServer: the daemon asks so for basic authentication.
func (u *users) Credentials(ctx context.Context, req *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	if !u.lendHost(hostOf(req.GetHost())) {
		return &auth.CredentialsResponse{}, nil
	}
	return u.AuthServer.Credentials(ctx, req)
}

// lendHost reports whether the user of a whole host may be lent, and notes it.
func (u *users) lendHost(host string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.bounded || loginOf(u.logins, host) == nil {
		return true
	}
	if repository, withheld := u.withheld[host]; withheld {
		u.refusal = notLent(repository)
		return false
	}
	u.lent[host] = true
	return true
}

// reads says that the job reads an image, before the daemon does. The error is a
// DENIED fault when the user of its host was lent as a whole, and not for this image.
func (u *users) reads(ref string) error {
	repo := repository(ref)
	host, _, _ := strings.Cut(repo, "/")
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.bounded || loginOf(u.logins, host) == nil || u.allowed(repo, false) {
		return nil
	}
	if u.lent[host] {
		u.refusal = notLent(repo)
		return u.refusal
	}
	u.withheld[host] = repo
	return nil
}

// notLent returns the fault of a repository for which no user is lent.
func notLent(repository string) *fault.Error {
	return fault.New(fault.PermissionDenied, "DENIED",
		fmt.Sprintf("the builder's user is not lent for %s, and its registry asks for one", repository),
		"ask the operator to add the repository to pulls of the caller's rule, or use `kiln build`, which has your own login")
}

// denied returns why a user was not lent; nil when none was refused.
func (u *users) denied() *fault.Error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.refusal
}

// FetchToken implements auth.AuthServer.
func (u *users) FetchToken(ctx context.Context, req *auth.FetchTokenRequest) (*auth.FetchTokenResponse, error) {
	scopes, all := u.scopes(hostOf(req.GetHost()), req.GetScopes())
	switch {
	case all:
		return u.AuthServer.FetchToken(ctx, req)
	case len(scopes) == 0:
		return u.anonymous.FetchToken(ctx, req)
	}
	// A token for a part: to push, the daemon also asks to read where it may mount
	// layers from.
	return u.AuthServer.FetchToken(ctx, &auth.FetchTokenRequest{
		ClientID: req.GetClientID(), Host: req.GetHost(), Realm: req.GetRealm(), Service: req.GetService(), Scopes: scopes,
	})
}

// scopes returns those that a user is lent for, and whether that is all of them. See
// https://distribution.github.io/distribution/spec/auth/scope/.
func (u *users) scopes(host string, wanted []string) (lent []string, all bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.bounded || loginOf(u.logins, host) == nil {
		return wanted, true
	}
	for _, scope := range wanted {
		if u.allowsScope(host, scope) {
			lent = append(lent, scope)
		}
	}
	return lent, len(lent) == len(wanted) && len(wanted) > 0
}

// allowsScope reports whether a user is lent for one scope, "repository:name:pull,push".
// mu is held.
func (u *users) allowsScope(host, scope string) bool {
	kind, rest, _ := strings.Cut(scope, ":")
	end := strings.LastIndexByte(rest, ':')
	if kind != "repository" || end < 0 {
		return false
	}
	repo, actions := host+"/"+rest[:end], strings.Split(rest[end+1:], ",")
	push := slices.ContainsFunc(actions, func(action string) bool { return action != "pull" })
	if u.allowed(repo, push) {
		return true
	}
	u.refusal = notLent(repo)
	return false
}

// GetTokenAuthority implements auth.AuthServer.
func (u *users) GetTokenAuthority(
	ctx context.Context, req *auth.GetTokenAuthorityRequest,
) (*auth.GetTokenAuthorityResponse, error) {
	return u.AuthServer.GetTokenAuthority(ctx, &auth.GetTokenAuthorityRequest{
		Host: req.GetHost(), Salt: u.salted(req.GetSalt()),
	})
}

// VerifyTokenAuthority implements auth.AuthServer.
func (u *users) VerifyTokenAuthority(
	ctx context.Context, req *auth.VerifyTokenAuthorityRequest,
) (*auth.VerifyTokenAuthorityResponse, error) {
	return u.AuthServer.VerifyTokenAuthority(ctx, &auth.VerifyTokenAuthorityRequest{
		Host: req.GetHost(), Payload: req.GetPayload(), Salt: u.salted(req.GetSalt()),
	})
}

// salted makes the key by which a session proves its user to the daemon depend on the
// rules of the build: the daemon gives the tokens of one session to all that have the
// same key.
func (u *users) salted(salt []byte) []byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append(slices.Clone(salt), u.rights...)
}

// unauthorized reports whether a solve failed because a registry wanted another user,
// which BuildKit only words.
func unauthorized(err error) bool {
	text := strings.ToLower(err.Error())
	words := []string{"unauthorized", "authorization", "insufficient_scope", "forbidden", "denied"}
	return slices.ContainsFunc(words, func(word string) bool { return strings.Contains(text, word) })
}
