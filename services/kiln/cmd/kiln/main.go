// Command kiln is Kiln's command line: it builds images and runs Kiln itself.
package main

import (
	"log/slog"
	"os"

	"github.com/kilnbuild/kiln/pkg/service"
	"github.com/kilnbuild/kiln/services/kiln/internal/cli"
)

func main() {
	// Libraries report through package log what a user cannot act on, for example the
	// HTTP/2 server of a build's session when the builder has gone. The command says
	// the cause itself. SetDefault also redirects package log, as Info.
	handler := slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})
	slog.SetDefault(slog.New(handler)) //nolint:forbidigo // It is of the process, and no service's.
	os.Exit(service.Main(cli.New()))
}
