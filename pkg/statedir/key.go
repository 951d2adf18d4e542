package statedir

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Key returns a secret of a state directory that Open has locked: as many random bytes,
// which are made once and stay. A file of another size is a FAILED_PRECONDITION fault.
func Key(dir, name string, bytes int) ([]byte, error) {
	path := filepath.Join(dir, name)
	key, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key = make([]byte, bytes)
		_, _ = rand.Read(key) // Never fails.
		err = writeKey(path, key)
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.FailedPrecondition, "WRONG_STATE", fmt.Sprintf("the key %s cannot be read or written", path),
			"let the service's user read and write its state_dir")
	}
	if len(key) != bytes {
		return nil, fault.New(fault.FailedPrecondition, "WRONG_STATE",
			fmt.Sprintf("the key %s has %d bytes, not %d", path, len(key), bytes),
			"remove the file: the service makes a new key, and what the old one sealed is no longer valid")
	}
	return key, nil
}

// writeKey writes a key beside its name, syncs it, and renames it, so that a killed
// process leaves no part of one.
func writeKey(path string, key []byte) error {
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(key)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(part, path)
}
