package auth

import (
	"context"
	"fmt"
	"slices"

	"github.com/kilnbuild/kiln/pkg/fault"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// Grant is what the rules that allow a call say of what it may be about. The zero value
// says nothing, and allows all.
type Grant struct{ rules []*configv1.AccessRule }

// Use is what a call is about.
type Use struct {
	Project      string   // empty: none
	Entitlements []string // that its build asks for
	Registries   []string // repositories that it writes to
	Frontend     string   // image that reads its Dockerfile; empty: the daemon's own
}

type grantKey struct{}

// WithGrant is ctx with what the caller may.
func WithGrant(ctx context.Context, g Grant) context.Context {
	return context.WithValue(ctx, grantKey{}, g)
}

// GrantOf is the grant that WithGrant put there, else one that allows all.
func GrantOf(ctx context.Context) Grant {
	g, _ := ctx.Value(grantKey{}).(Grant)
	return g
}

// Check is a DENIED fault, which says what is not allowed, unless one of the rules allows
// the whole of a use.
func (g Grant) Check(u Use) error {
	var why error
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

// Unbounded reports that no rule says anything of projects.
func (g Grant) Unbounded() bool {
	return len(g.rules) == 0 || slices.ContainsFunc(g.rules, func(r *configv1.AccessRule) bool { return len(r.GetProjects()) == 0 })
}

func fits(r *configv1.AccessRule, u Use) error {
	for _, part := range []struct {
		what, field string
		allowed     []string
		names       []string
	}{
		{"project", "projects", r.GetProjects(), one(u.Project)},
		{"entitlement", "entitlements", r.GetEntitlements(), u.Entitlements},
		{"repository", "registries", r.GetRegistries(), u.Registries},
		{"frontend", "frontends", r.GetFrontends(), one(u.Frontend)},
	} {
		for _, name := range part.names {
			if len(part.allowed) > 0 && !matches(part.allowed, name) {
				return fault.New(fault.PermissionDenied, "DENIED", fmt.Sprintf("the caller may not use the %s %q", part.what, name),
					"ask the operator to add it to "+part.field+" of the caller's rule in the server's policy_file or server.access")
			}
		}
	}
	return nil
}

func one(name string) []string {
	if name == "" {
		return nil
	}
	return []string{name}
}
