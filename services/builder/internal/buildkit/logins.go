package buildkit

import (
	"fmt"
	"os"
	"strings"

	"github.com/docker/cli/cli/config/types"
	"github.com/moby/buildkit/session/auth/authprovider"

	"github.com/kilnbuild/kiln/pkg/fault"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// hostOf returns a registry's host as references name it: BuildKit asks for the user
// of docker.io by the name of its API's host.
func hostOf(host string) string {
	switch host {
	case authprovider.DockerHubRegistryHost, authprovider.DockerHubConfigfileKey:
		return "docker.io"
	default:
		return host
	}
}

// loginOf returns the login for a host; nil when there is none.
func loginOf(logins []*configv1.RegistryLogin, host string) *configv1.RegistryLogin {
	for _, login := range logins {
		if login.GetHost() == host {
			return login
		}
	}
	return nil
}

// passwordOf reads the user of a host; it is empty when there is none. Passwords are
// read when they are asked for, so that a new one needs no restart.
func passwordOf(logins []*configv1.RegistryLogin, host string) (types.AuthConfig, error) {
	login := loginOf(logins, hostOf(host))
	if login == nil {
		return types.AuthConfig{}, nil
	}
	password, err := os.ReadFile(login.GetPasswordFile())
	if err != nil {
		return types.AuthConfig{}, fmt.Errorf("the builder's password for %s: %w", login.GetHost(), err)
	}
	return types.AuthConfig{
		ServerAddress: login.GetHost(), Username: login.GetUsername(), Password: strings.TrimSpace(string(password)),
	}, nil
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
