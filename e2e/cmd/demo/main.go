// Command demo shows what Kiln does for builds, on this machine, with real parts:
// a build from nothing, the same again, and the same on a second daemon that has
// nothing but the registry's cache; beside plain buildctl on the same daemons.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// longest bounds the whole demo.
const longest = 10 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case interrupted:
		fmt.Fprintln(os.Stderr, "demo: interrupted; all that was started is gone")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// run shows everything once and cleans up, whatever happens.
func run(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	start := time.Now()

	say("Starting registry, buildkitd, builder, cache manager and janitor (kiln up), and a second daemon with a builder")
	d, err := startDemo(ctx)
	if d != nil {
		defer func() { err = errors.Join(err, d.close()) }()
	}
	if err != nil {
		return err
	}
	m, err := d.measure(ctx)
	if err != nil {
		return err
	}
	say("Asking the registry for the image")
	if err := d.checkImage(ctx, m.Digest); err != nil {
		return err
	}
	printTable(os.Stdout, m)
	if err := m.write(d.results); err != nil {
		return err
	}
	if err := d.grpcurl(ctx); err != nil {
		return err
	}
	if err := m.enough(); err != nil {
		return err
	}
	say("Done in %s. Figures: %s", time.Since(start).Round(time.Second), d.results)
	return nil
}

// say prints one line of progress.
func say(format string, args ...any) { fmt.Printf("\n==> "+format+"\n", args...) }

// note prints one result below it.
func note(format string, args ...any) { fmt.Printf("    "+format+"\n", args...) }
