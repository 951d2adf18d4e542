package auth

import (
	"context"
	"strings"

	"github.com/kilnbuild/kiln/pkg/fault"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// Authorizer decides on a call: no error allows it, for what the grant says. FullMethod is as
// in "/kiln.builder.v1.BuilderService/Build".
type Authorizer func(ctx context.Context, fullMethod string, id Identity) (Grant, error)

// FromRules makes the Authorizer of a configuration: a rule that names both the caller and
// the method allows the call, for what it says of projects and the rest, and what no rule
// allows is denied. Without any rule, all calls are allowed or denied by defaultAllow.
func FromRules(rules []*configv1.AccessRule, defaultAllow bool) Authorizer {
	if len(rules) == 0 && defaultAllow {
		return func(context.Context, string, Identity) (Grant, error) { return Grant{}, nil }
	}
	return func(_ context.Context, fullMethod string, id Identity) (Grant, error) {
		var grant Grant
		for _, r := range rules {
			if matches(r.GetIdentities(), id.Name) && matches(r.GetMethods(), fullMethod) {
				grant.rules = append(grant.rules, r)
			}
		}
		if len(grant.rules) == 0 {
			return Grant{}, denied(fullMethod, id)
		}
		return grant, nil
	}
}

// matches says whether a pattern fits. Only the pattern "*" fits a name that is
// empty.
func matches(patterns []string, name string) bool {
	for _, pattern := range patterns {
		prefix, wildcard := strings.CutSuffix(pattern, "*")
		switch {
		case wildcard && prefix == "":
			return true
		case name == "":
		case wildcard && strings.HasPrefix(name, prefix):
			return true
		case !wildcard && pattern == name:
			return true
		}
	}
	return false
}

func denied(fullMethod string, id Identity) error {
	if id.Anonymous() {
		return fault.New(fault.Unauthenticated, "UNAUTHENTICATED",
			"the caller has no identity, and "+fullMethod+" needs one",
			"connect with a client certificate that the server's client_ca_file accepts or with a token of its tokens_file, or have its rules allow identity \"*\"")
	}
	return fault.New(fault.PermissionDenied, "DENIED",
		id.Name+" may not call "+fullMethod,
		"ask the operator for a rule in the server's policy_file or server.access that names this identity and this method")
}
