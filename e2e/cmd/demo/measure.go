package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// The guide's figures in seconds, and what it promises to take off, of one.
const (
	guideCold, guideWarm, guideRegistry = 3.8, 0.35, 0.4
	promisedWarm, promisedRegistry      = 0.90, 0.89
)

// How often each kind of build is measured.
const (
	coldRounds = 2
	warmRounds = 7
	farRounds  = 5
)

// figures are what .run/demo.json holds: medians in seconds, and what they take
// off the build from nothing, of one: 0.95 is 95 %.
type figures struct {
	Cold              float64 `json:"cold_s"`
	Warm              float64 `json:"warm_s"`
	Registry          float64 `json:"registry_s"`
	WarmReduction     float64 `json:"warm_reduction"`
	RegistryReduction float64 `json:"registry_reduction"`
	BuildctlWarm      float64 `json:"buildctl_warm_s"`
	Digest            string  `json:"digest"`

	buildctlCold, buildctlRegistry float64
}

// tool builds the sample.
type tool struct {
	name string
	// build builds on a daemon and pushes to a reference of its own that name is
	// part of. withCache also reads and writes a cache in the registry.
	build func(ctx context.Context, on daemon, name string, withCache bool) (digest string, err error)
}

// plan is one kind of measurement.
type plan struct {
	rounds    int
	on        daemon
	withCache bool
	// emptied: the daemon loses its cache before each build, and each build
	// without the registry's cache pushes to a repository that is not there.
	emptied bool
}

// measure builds the sample in all ways and returns the medians.
func (d *demo) measure(ctx context.Context) (*figures, error) {
	tools := []tool{{"kiln", d.buildWithKiln}, {"buildctl", d.buildWithBuildctl}}

	say("From nothing: an emptied daemon, a repository that is not there (median of %d)", coldRounds)
	cold, _, err := d.measureOne(ctx, tools, "cold", plan{rounds: coldRounds, on: d.first, emptied: true})
	if err != nil {
		return nil, err
	}
	if err := d.buildOnce(ctx, tools, "warm", false); err != nil {
		return nil, err
	}
	say("Again, with nothing changed (median of %d)", warmRounds)
	warm, digest, err := d.measureOne(ctx, tools, "warm", plan{rounds: warmRounds, on: d.first})
	if err != nil {
		return nil, err
	}
	say("Leaving the cache in the registry (kiln build-registry)")
	if err := d.buildOnce(ctx, tools, "far", true); err != nil {
		return nil, err
	}
	say("On a second daemon that has nothing, with the registry's cache (median of %d)", farRounds)
	far, _, err := d.measureOne(ctx, tools, "far", plan{rounds: farRounds, on: d.second, withCache: true, emptied: true})
	if err != nil {
		return nil, err
	}
	return &figures{
		Cold: rounded(cold[0]), Warm: rounded(warm[0]), Registry: rounded(far[0]), Digest: digest,
		WarmReduction: rounded(1 - warm[0]/cold[0]), RegistryReduction: rounded(1 - far[0]/cold[0]),
		BuildctlWarm: rounded(warm[1]), buildctlCold: cold[1], buildctlRegistry: far[1],
	}, nil
}

// buildOnce builds with each tool on the first daemon.
func (d *demo) buildOnce(ctx context.Context, tools []tool, name string, withCache bool) error {
	for _, t := range tools {
		if _, err := t.build(ctx, d.first, name, withCache); err != nil {
			return err
		}
	}
	return nil
}

// measureOne runs the rounds of a plan with every tool in turn. It returns the
// median time of each in seconds, and the digest of the first tool's last image.
func (d *demo) measureOne(ctx context.Context, tools []tool, name string, p plan) (medians []float64, digest string, err error) {
	times := make([][]float64, len(tools))
	for round := range p.rounds {
		to := name
		if p.emptied && !p.withCache {
			to = fmt.Sprintf("%s-%d", name, round+1)
		}
		for i, t := range tools {
			if p.emptied {
				if err := d.emptied(ctx, p.on); err != nil {
					return nil, "", err
				}
			}
			if err := wait(ctx, pause); err != nil {
				return nil, "", err
			}
			start := time.Now()
			got, err := t.build(ctx, p.on, to, p.withCache)
			took := time.Since(start).Seconds()
			if err != nil {
				return nil, "", err
			}
			if i == 0 {
				digest = got
			}
			times[i] = append(times[i], took)
		}
	}
	for i, t := range tools {
		note("%-8s %s", t.name, list(times[i]))
		medians = append(medians, median(times[i]))
	}
	return medians, digest, nil
}

// tag is a reference of the sample in the demo's registry.
func (d *demo) tag(name string) string { return d.registry + "/guide-app-" + name + ":1" }

// buildWithKiln runs the guide's two commands.
func (d *demo) buildWithKiln(ctx context.Context, on daemon, name string, withCache bool) (string, error) {
	command := []string{"build"}
	if withCache {
		command = []string{"build-registry", "--cache-repository", d.registry + "/cache"}
	}
	out, err := d.output(ctx, d.kiln, append(command, d.app, d.app, d.tag(name),
		"--builder", on.builder, "--build-arg", "BASE="+d.base, "--push", "--progress", "quiet", "--format", "json")...)
	if err != nil {
		return "", err
	}
	return outcomeDigest(out)
}

// outcomeDigest reads what `kiln build --format json` prints.
func outcomeDigest(out string) (string, error) {
	var outcome struct {
		State, Digest string
	}
	if err := json.Unmarshal([]byte(out), &outcome); err != nil {
		return "", fmt.Errorf("kiln build: reading its outcome: %w\n%s", err, out)
	}
	if outcome.State != "SUCCEEDED" || outcome.Digest == "" {
		return "", fmt.Errorf("kiln build: no digest in its outcome\n%s", out)
	}
	return outcome.Digest, nil
}

// buildWithBuildctl runs plain buildctl on the daemon's own socket.
func (d *demo) buildWithBuildctl(ctx context.Context, on daemon, name string, withCache bool) (string, error) {
	args := []string{
		"--addr", on.addr, "build", "--progress", "quiet", "--frontend", "dockerfile.v0",
		"--local", "context=" + d.app, "--local", "dockerfile=" + d.app, "--opt", "build-arg:BASE=" + d.base,
		"--output", "type=image,push=true,name=" + d.tag(name+"-buildctl"),
	}
	if withCache {
		ref := "type=registry,ref=" + d.registry + "/cache/guide-app-buildctl"
		args = append(args, "--import-cache", ref, "--export-cache", ref+",mode=max,image-manifest=true")
	}
	_, err := d.output(ctx, d.buildctl, args...)
	return "", err
}

// asFast is how much longer than buildctl a build by Kiln may take where both fall short
// of what the guide promises: then the machine is too busy to tell.
const asFast = 1.2

// enough is nil when the reductions are what the guide promises, or buildctl too falls short.
func (f *figures) enough() error {
	var errs []error
	for _, r := range []struct {
		what                          string
		got, promised, kiln, buildctl float64
	}{
		{"again, unchanged", f.WarmReduction, promisedWarm, f.Warm, f.BuildctlWarm},
		{"with the registry's cache", f.RegistryReduction, promisedRegistry, f.Registry, f.buildctlRegistry},
	} {
		switch {
		case r.got > r.promised:
		case r.kiln <= asFast*r.buildctl:
			say("%s: %.1f %% off, less than the guide's %.0f %%; buildctl took as long, so this machine is busy or slow", r.what, 100*r.got, 100*r.promised)
		default:
			errs = append(errs, fmt.Errorf("%s: %.1f %% off, the guide promises over %.0f %%", r.what, 100*r.got, 100*r.promised))
		}
	}
	return errors.Join(errs...)
}

func (f *figures) write(path string) error {
	data, err := json.MarshalIndent(f, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err == nil {
		err = os.WriteFile(path, append(data, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("writing the figures: %w", err)
	}
	return nil
}

// rounded leaves four digits after the point: more are noise.
func rounded(v float64) float64 { return math.Round(v*1e4) / 1e4 }

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
