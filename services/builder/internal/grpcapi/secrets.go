package grpcapi

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"

	"golang.org/x/crypto/ssh"

	"github.com/kilnbuild/kiln/pkg/fault"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// defaultSSHID is the id that RUN --mount=type=ssh means when it names none.
const defaultSSHID = "default"

// mountID is what a Dockerfile can write as the id of a secret or a key.
var mountID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:/@+-]*$`)

// maxSecretBytes bounds the secrets of a build together, for what hides them in its
// output takes many times their size. One alone may have as much.
const maxSecretBytes = 512_000

func secretsOf(spec *build.Spec, in *builderv1.BuildSpec) error {
	seen, total := make(map[string]bool), 0
	for i, secret := range in.GetSecrets() {
		if err := checkID(fmt.Sprintf("spec.secrets[%d].id", i), secret.GetId(), seen); err != nil {
			return err
		}
		if total += len(secret.GetValue()); total > maxSecretBytes {
			return fault.Invalid("spec.secrets", "", fmt.Sprintf("the secrets have more than %d bytes together", maxSecretBytes),
				"send what is large and no secret with the context")
		}
		spec.Secrets = append(spec.Secrets, build.Secret{ID: secret.GetId(), Value: secret.GetValue()})
	}
	return nil
}

// sshKeysOf makes sure that the keys can be used, before there is a build. Its
// errors hold nothing of them.
func sshKeysOf(spec *build.Spec, in *builderv1.BuildSpec) error {
	seen := make(map[string]bool)
	for i, key := range in.GetSshKeys() {
		id := cmp.Or(key.GetId(), defaultSSHID)
		if err := checkID(fmt.Sprintf("spec.ssh_keys[%d].id", i), id, seen); err != nil {
			return err
		}
		field := fmt.Sprintf("spec.ssh_keys[%d].private_key", i)
		_, err := ssh.ParseRawPrivateKey(key.GetPrivateKey())
		var locked *ssh.PassphraseMissingError
		switch {
		case errors.As(err, &locked):
			return fault.Invalid(field, "", "has a passphrase", "send a key without one, made for this use (ssh-keygen -p -N '')")
		case err != nil:
			return fault.Invalid(field, "", "is not a private key in PEM form",
				"send the content of a file that ssh-keygen wrote, from its BEGIN line to its END line")
		}
		spec.SSHKeys = append(spec.SSHKeys, build.SSHKey{ID: id, PEM: key.GetPrivateKey()})
	}
	return nil
}

// checkID makes sure of an id that a Dockerfile names, and that it has one meaning.
func checkID(field, id string, seen map[string]bool) error {
	if !mountID.MatchString(id) {
		return fault.Invalid(field, id, "is not an id that a Dockerfile can name", `write it like "npm-token"`)
	}
	if seen[id] {
		return fault.Invalid(field, id, "is named twice", "give each its own id")
	}
	seen[id] = true
	return nil
}
