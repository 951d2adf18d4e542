package auth

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/fault"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// Grant is what the rules that allow a call say of what it may be about. The zero value
// says nothing, and allows all.
type Grant struct {
	rules  []*configv1.AccessRule
	denied error // that nothing is allowed, and why
}

// Refused returns a grant that allows nothing, for the reason err.
func Refused(err error) Grant { return Grant{denied: err} }

// Use is what a call is about.
type Use struct {
	Project      string   // empty: none
	Entitlements []string // rights that its build asks for
	Registries   []string // repositories that it writes to
	Pulls        []string // repositories that it reads with the builder's users
	Frontend     string   // image that reads its Dockerfile; empty: the daemon's own
	DaemonAdmin  bool     // it concerns a whole daemon, and so the builds of all tenants
}

type grantKey struct{}

// WithGrant returns ctx with what the caller may do.
func WithGrant(ctx context.Context, g Grant) context.Context {
	return context.WithValue(ctx, grantKey{}, g)
}

// GrantOf returns the grant that WithGrant put there, else one that allows all.
func GrantOf(ctx context.Context) Grant {
	g, _ := ctx.Value(grantKey{}).(Grant)
	return g
}

// Check returns a DENIED fault that names what is not allowed, unless one of the rules
// allows the whole use.
func (g Grant) Check(u Use) error {
	why := g.denied
	for _, r := range g.rules {
		err := fits(r, u)
		if err == nil {
			return nil
		}
		why = err
	}
	return why
}

// Project reports whether a call may be about a project.
func (g Grant) Project(name string) bool { return g.Check(Use{Project: name}) == nil }

// Unbounded reports whether some rule, or the lack of rules, allows all projects.
func (g Grant) Unbounded() bool {
	if len(g.rules) == 0 {
		return g.denied == nil
	}
	return slices.ContainsFunc(g.rules, func(r *configv1.AccessRule) bool { return len(r.GetProjects()) == 0 })
}

// Fingerprint returns a digest that equal grants share, and nil for a grant without
// rules.
func (g Grant) Fingerprint() []byte {
	if len(g.rules) == 0 {
		return nil
	}
	hash := sha256.New()
	for _, r := range g.rules {
		// Of one process only: the encoding differs between versions of the library.
		raw, _ := proto.MarshalOptions{Deterministic: true}.Marshal(r) // fails for bad UTF-8, which no configuration holds
		hash.Write(binary.BigEndian.AppendUint64(nil, uint64(len(raw))))
		hash.Write(raw)
	}
	return hash.Sum(nil)
}

func fits(r *configv1.AccessRule, u Use) error {
	pulls, pullField := r.GetPulls(), "pulls"
	if len(pulls) == 0 {
		pulls, pullField = r.GetRegistries(), "pulls (or registries)"
	}
	for _, part := range []struct {
		what, field string
		allowed     []string
		names       []string
	}{
		{"project", "projects", r.GetProjects(), one(u.Project)},
		{"entitlement", "entitlements", r.GetEntitlements(), u.Entitlements},
		{"repository", "registries", r.GetRegistries(), u.Registries},
		{"builder's user for the repository", pullField, pulls, u.Pulls},
		{"frontend", "frontends", r.GetFrontends(), one(u.Frontend)},
	} {
		for _, name := range part.names {
			if len(part.allowed) > 0 && !matches(part.allowed, name) {
				return fault.New(fault.PermissionDenied, "DENIED", fmt.Sprintf("the caller may not use the %s %q", part.what, name),
					"ask the operator to add it to "+part.field+" of the caller's rule in the server's policy_file or server.access")
			}
		}
	}
	if u.DaemonAdmin && !r.GetDaemonAdmin() {
		return fault.New(fault.PermissionDenied, "DENIED", "the call concerns a whole daemon, and the caller administers none",
			"ask the operator to set daemon_admin of the caller's rule in the server's policy_file or server.access")
	}
	return nil
}

func one(name string) []string {
	if name == "" {
		return nil
	}
	return []string{name}
}
