// Package driver reaches the storage of a registry as the registry does: by its
// configuration, and those drivers of CNCF distribution that the program has.
package driver

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/storage/driver/factory"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/storage"
)

// defaultRoot is where a registry stores that was told nothing
// (registry/storage/driver/filesystem/driver.go).
const defaultRoot = "/var/lib/registry"

// Open reaches the storage that a registry's configuration file names. Variables like
// REGISTRY_STORAGE_S3_SECRETKEY override it, as they do for the registry. Errors are
// INVALID_ARGUMENT faults.
func Open(ctx context.Context, file string) (*storage.Storage, error) {
	invalid := func(problem string) error {
		return fault.Invalid("registry.storage_config", file, problem, "name the file that the registry is started with, as in: registry serve /etc/distribution/config.yml")
	}
	in, err := os.Open(file)
	if err != nil {
		return nil, invalid(err.Error())
	}
	defer func() { _ = in.Close() }() // It was only read.
	cfg, err := configuration.Parse(in)
	if err != nil {
		return nil, invalid(fmt.Sprintf("is no configuration of a registry: %v", err))
	}
	kind, parameters := cfg.Storage.Type(), cfg.Storage.Parameters()
	switch kind {
	case "filesystem":
		root, _ := parameters["rootdirectory"].(string)
		if root == "" {
			root = defaultRoot
		}
		return storage.New(root), nil
	case "inmemory":
		return nil, invalid("names a storage in the registry's own memory, which nobody else reaches")
	}
	d, err := factory.Create(ctx, kind, parameters)
	if err != nil {
		return nil, invalid(fmt.Sprintf("names a storage that cannot be reached: %v", err))
	}
	return storage.NewObjects(d, name(kind, parameters)), nil
}

// name is what people know a storage by: s3:bucket/directory.
func name(kind string, parameters configuration.Parameters) string {
	name := kind
	for _, key := range []string{"bucket", "container"} {
		if is, ok := parameters[key].(string); ok {
			name += ":" + is
		}
	}
	if root, ok := parameters["rootdirectory"].(string); ok {
		name += "/" + strings.Trim(root, "/")
	}
	return strings.TrimRight(name, "/")
}
