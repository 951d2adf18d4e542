// Package secrets reads the secrets and SSH keys that a command sends by value:
// for a build that goes on without the command nobody could be asked for them.
package secrets

import (
	"cmp"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// Bounds of the contract, in bytes.
const (
	maxSecret = 500 << 10
	maxKey    = 64 << 10
)

// Read reads --secret flags, in the form that BuildKit's own clients take:
// id=ID,src=FILE or id=ID,env=VARIABLE; id=ID alone is the variable of that
// name, else the file.
func Read(flags []string) ([]*builderv1.Secret, error) {
	var all []*builderv1.Secret
	for _, flag := range flags {
		s, err := parse(flag)
		if err == nil {
			var value []byte
			if value, err = s.value(); err == nil {
				all = append(all, &builderv1.Secret{Id: s.id, Value: value})
			}
		}
		if err != nil {
			return nil, fmt.Errorf("--secret: %w; write it like id=npmrc,src=FILE or id=token,env=VARIABLE", err)
		}
	}
	return all, nil
}

type source struct{ id, file, env string }

func parse(flag string) (source, error) {
	fields, err := csv.NewReader(strings.NewReader(flag)).Read()
	if err != nil && !errors.Is(err, io.EOF) {
		return source{}, err
	}
	var s source
	kind := ""
	for _, field := range fields {
		key, value, _ := strings.Cut(field, "=")
		switch strings.ToLower(key) {
		case "id":
			s.id = value
		case "src", "source":
			s.file = value
		case "env":
			s.env = value
		case "type":
			kind = value
		default:
			return source{}, fmt.Errorf("%q is not known", key)
		}
	}
	if kind != "" && kind != "file" && kind != "env" {
		return source{}, fmt.Errorf("type %q is not known", kind)
	}
	if kind == "env" && s.env == "" {
		s.env, s.file = s.file, ""
	}
	if s.id == "" {
		return source{}, errors.New("an id is missing")
	}
	if s.file == "" && s.env == "" {
		if _, set := os.LookupEnv(s.id); set && kind != "file" {
			s.env = s.id
		}
	}
	return s, nil
}

// value reads the secret. Errors never hold it.
func (s source) value() ([]byte, error) {
	if s.env != "" {
		value, set := os.LookupEnv(s.env)
		if !set {
			return nil, fmt.Errorf("the variable %s is not set", s.env)
		}
		return []byte(value), nil
	}
	return readFile(cmp.Or(s.file, s.id), maxSecret)
}

// ReadSSH reads --ssh flags whose keys are files: ID=KEY[,KEY]. An agent lives on
// this host only, so one is refused.
func ReadSSH(flags []string) ([]*builderv1.SshKey, error) {
	var all []*builderv1.SshKey
	for _, flag := range flags {
		id, paths, named := strings.Cut(flag, "=")
		if !named || paths == "" {
			return nil, fmt.Errorf("--ssh %s is your SSH agent, which a build that goes on without you cannot ask; name a key, like --ssh %s=$HOME/.ssh/id_ed25519", flag, cmp.Or(id, "default"))
		}
		for path := range strings.SplitSeq(paths, ",") {
			key, err := readFile(path, maxKey)
			if err != nil {
				return nil, fmt.Errorf("--ssh %s: %w; name a file with a private key that has no passphrase", id, err)
			}
			all = append(all, &builderv1.SshKey{Id: id, PrivateKey: key})
		}
	}
	return all, nil
}

func readFile(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case info.IsDir() || info.Mode()&fs.ModeSocket != 0:
		return nil, fmt.Errorf("%s is not a file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return data, err
}
