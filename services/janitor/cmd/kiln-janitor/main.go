// Command kiln-janitor is Kiln's registry janitor.
package main

import (
	"os"

	// The drivers that reach the storage of a registry from elsewhere: they are half of the
	// program, and nobody needs them in another one.
	_ "github.com/distribution/distribution/v3/registry/storage/driver/azure"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/gcs"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/s3-aws"

	"github.com/kilnbuild/kiln/pkg/service"
	"github.com/kilnbuild/kiln/services/janitor"
)

func main() { os.Exit(service.Main(janitor.Command())) }
