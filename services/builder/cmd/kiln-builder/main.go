// Command kiln-builder is Kiln's builder.
package main

import (
	"os"

	"github.com/kilnbuild/kiln/pkg/service"
	"github.com/kilnbuild/kiln/services/builder"
)

func main() { os.Exit(service.Main(builder.Command())) }
