package buildkit

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/docker/cli/cli/config/types"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"

	"github.com/kilnbuild/kiln/pkg/fault"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// dockerHub is how BuildKit asks for the user of docker.io.
const dockerHub = "https://index.docker.io/v1/"

// asUsers answers the daemon's questions for the users of registries. Passwords are read when
// they are asked for, so that a new one needs no restart.
func asUsers(logins []*configv1.RegistryLogin) session.Attachable {
	return authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{
		AuthConfigProvider: func(_ context.Context, host string, _ []string, _ authprovider.ExpireCachedAuthCheck) (types.AuthConfig, error) {
			if host == dockerHub {
				host = "docker.io"
			}
			for _, login := range logins {
				if login.GetHost() != host {
					continue
				}
				password, err := os.ReadFile(login.GetPasswordFile())
				if err != nil {
					return types.AuthConfig{}, fmt.Errorf("the builder's password for %s: %w", host, err)
				}
				return types.AuthConfig{ServerAddress: host, Username: login.GetUsername(), Password: strings.TrimSpace(string(password))}, nil
			}
			return types.AuthConfig{}, nil
		},
	})
}

// CheckLogins is an INVALID_FIELD fault when a password cannot be read.
func CheckLogins(logins []*configv1.RegistryLogin) error {
	for i, login := range logins {
		if _, err := os.ReadFile(login.GetPasswordFile()); err != nil {
			field := fmt.Sprintf("registries[%d].password_file", i)
			return fault.Invalid(field, login.GetPasswordFile(), "cannot be read: "+err.Error(), "name a file with the password that the builder's user may read")
		}
	}
	return nil
}
