// Command kiln-cachemanager is Kiln's cache manager.
package main

import (
	"os"

	"github.com/kilnbuild/kiln/pkg/service"
	"github.com/kilnbuild/kiln/services/cachemanager"
)

func main() { os.Exit(service.Main(cachemanager.Command())) }
