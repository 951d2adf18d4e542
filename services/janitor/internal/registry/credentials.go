package registry

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"

	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// maxPassword bounds a password file.
const maxPassword = 64 << 10

// credentials are the janitor's at the registry. The file is read each time they
// are needed, so a new password is used at once.
type credentials struct{ username, file string }

// newCredentials reads the file once, so that a wrong path is found at the start.
func newCredentials(cfg *configv1.RegistryConfig) (*credentials, error) {
	c := &credentials{username: cfg.GetUsername(), file: cfg.GetPasswordFile()}
	if (c.username == "") != (c.file == "") {
		return nil, errors.New("registry.username and registry.password_file go together: set both, or none for anonymous access")
	}
	_, err := c.Authorization()
	return c, err
}

// Authorization implements authn.Authenticator.
func (c *credentials) Authorization() (*authn.AuthConfig, error) {
	if c.username == "" {
		return authn.Anonymous.Authorization()
	}
	f, err := os.Open(c.file)
	if err != nil {
		return nil, fmt.Errorf("registry.password_file: %w", err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxPassword))
	if err != nil {
		return nil, fmt.Errorf("registry.password_file: %w", err)
	}
	return &authn.AuthConfig{Username: c.username, Password: strings.TrimRight(string(data), "\r\n")}, nil
}
