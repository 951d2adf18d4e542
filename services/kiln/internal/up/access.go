package up

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/profile"
	"github.com/kilnbuild/kiln/services/kiln/internal/wholefile"
)

// tokenIdentity is who a caller with the token of kiln up is.
const tokenIdentity = "local"

// setUpToken makes the token that callers must show, or reads that of an earlier start.
func (r *runner) setUpToken() error {
	if !r.opts.RequireToken {
		return nil
	}
	text, err := os.ReadFile(r.paths.token())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	secret := strings.TrimSpace(string(text))
	if secret == "" {
		secret = "kiln_" + rand.Text()
		if err := wholefile.Replace(r.paths.token(), []byte(secret+"\n"), 0o600); err != nil {
			return err
		}
	}
	sum := sha256.Sum256([]byte(secret))
	hashes := fmt.Sprintf("# Written by kiln up at each start.\ntokens:\n  - {identity: %q, sha256: %s}\n", tokenIdentity, hex.EncodeToString(sum[:]))
	return wholefile.Replace(r.paths.tokens(), []byte(hashes), 0o600)
}

// publishedToken is the file with the token beside the profile, for the caller who
// ran kiln up. Empty: no token is needed.
func (r *runner) publishedToken(name string) string {
	if !r.opts.RequireToken {
		return ""
	}
	return filepath.Join(profile.RunDir(), name+".token")
}

// publishToken writes the token where the caller's commands find it.
func (r *runner) publishToken(file string) error {
	if file == "" {
		return nil
	}
	text, err := os.ReadFile(r.paths.token())
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil { //nolint:gosec // As profile.Publish: other users may list what runs.
		return err
	}
	// Anew, so that neither owner nor mode of an earlier one stay.
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := wholefile.Replace(file, text, 0o600); err != nil {
		return err
	}
	uid, gid := profile.Caller()
	return os.Chown(file, uid, gid)
}

// withdrawToken removes the published token.
func (r *runner) withdrawToken() error {
	file := r.publishedToken(r.profile().Name)
	if file == "" {
		return nil
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// restrict has a server refuse calls without the token, health checks excepted.
func (r *runner) restrict(server *configv1.ServerConfig) *configv1.ServerConfig {
	if !r.opts.RequireToken {
		return server
	}
	server.TokensFile = r.paths.tokens()
	server.Access = []*configv1.AccessRule{
		{Identities: []string{tokenIdentity}, Methods: []string{"*"}, DaemonAdmin: true},
		{Identities: []string{"*"}, Methods: []string{"/grpc.health.v1.Health/*"}},
	}
	return server
}

// peerToken is the file with the token that the builder shows to the other services.
func (r *runner) peerToken() string {
	if !r.opts.RequireToken {
		return ""
	}
	return r.paths.token()
}
