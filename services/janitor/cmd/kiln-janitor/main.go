// Command kiln-janitor is Kiln's registry janitor.
package main

import (
	"os"

	"github.com/kilnbuild/kiln/pkg/service"
	"github.com/kilnbuild/kiln/services/janitor"
)

func main() { os.Exit(service.Main(janitor.Command())) }
