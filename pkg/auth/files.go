package auth

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/config"
	"github.com/kilnbuild/kiln/pkg/fault"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// PolicyFile are rules in a file, which is read again when it changes.
type PolicyFile struct{ current *reloaded[Authorizer] }

// NewPolicyFile reads the rules of a file.
func NewPolicyFile(file string, log *slog.Logger) (*PolicyFile, error) {
	current, err := newReloaded("the rules of access", []string{file}, log, func() (Authorizer, error) {
		var policy configv1.AccessPolicy
		if err := readFile(file, &policy); err != nil {
			return nil, err
		}
		return FromRules(policy.GetRules(), false), nil
	})
	return &PolicyFile{current}, err
}

// Authorize is an Authorizer, by the rules of the moment.
func (f *PolicyFile) Authorize(ctx context.Context, fullMethod string, id Identity) (Grant, error) {
	return f.current.get()(ctx, fullMethod, id)
}

// Stale reports that the file holds others, which do not load.
func (f *PolicyFile) Stale() bool {
	_, stale := f.current.status()
	return stale
}

// Tokens are the tokens of callers, in a file that is read again when it changes. It has
// their hashes only.
type Tokens struct {
	current *reloaded[map[[sha256.Size]byte]*configv1.Token]
}

// NewTokens reads the tokens of a file.
func NewTokens(file string, log *slog.Logger) (*Tokens, error) {
	current, err := newReloaded("tokens", []string{file}, log, func() (map[[sha256.Size]byte]*configv1.Token, error) {
		var list configv1.TokenFile
		if err := readFile(file, &list); err != nil {
			return nil, err
		}
		all := make(map[[sha256.Size]byte]*configv1.Token, len(list.GetTokens()))
		for _, token := range list.GetTokens() {
			var sum [sha256.Size]byte
			if _, err := hex.Decode(sum[:], []byte(token.GetSha256())); err != nil {
				return nil, fmt.Errorf("%s: the hash of a token of %s: %w", file, token.GetIdentity(), err)
			}
			all[sum] = token
		}
		return all, nil
	})
	return &Tokens{current}, err
}

// Identify is who has a token; an UNAUTHENTICATED fault for one that is not known or has
// ended. What tells tokens apart is the hash, so that the time it takes says nothing of them.
func (t *Tokens) Identify(token string) (Identity, error) {
	found := t.current.get()[sha256.Sum256([]byte(token))]
	switch {
	case found == nil:
		return Identity{}, fault.New(fault.Unauthenticated, "UNAUTHENTICATED", "the token is not known", "ask the operator for one; `kiln token new` makes one")
	case found.GetExpireTime() != nil && time.Now().After(found.GetExpireTime().AsTime()):
		return Identity{}, fault.New(fault.Unauthenticated, "UNAUTHENTICATED",
			fmt.Sprintf("the token of %s ended at %s", found.GetIdentity(), found.GetExpireTime().AsTime().Format(time.RFC3339)), "ask the operator for a new one")
	}
	return Identity{Name: found.GetIdentity()}, nil
}

// Stale reports that the file holds others, which do not load.
func (t *Tokens) Stale() bool {
	_, stale := t.current.status()
	return stale
}

// Bearer is the token in the values of an authorization header, empty for none.
func Bearer(authorization []string) string {
	for _, value := range authorization {
		scheme, token, found := strings.Cut(value, " ")
		if found && strings.EqualFold(scheme, "bearer") {
			return strings.TrimSpace(token)
		}
	}
	return ""
}

func readFile(file string, into proto.Message) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	_, err = config.Decode(file, string(text), into)
	return err
}
