// Command kiln is Kiln's command line: it builds images and runs Kiln itself.
package main

import (
	"os"

	"github.com/kilnbuild/kiln/pkg/service"
	"github.com/kilnbuild/kiln/services/kiln/internal/cli"
)

func main() { os.Exit(service.Main(cli.New())) }
