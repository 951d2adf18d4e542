package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/proto/client"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// upload is a context of 1 GiB: how fast it gets to the builder, and from there into
// a build, beside buildctl's sync of the same directory to the daemon.
type upload struct{}

const (
	uploadRounds = 3
	uploadFiles  = 1024 // of 1 MiB
	uploadMiB    = 1024
)

func (upload) label() string { return "upload_1gib_vs_buildctl_sync" }

func (u upload) run(ctx context.Context, s *stage) ([]row, error) {
	c, err := client.Dial(s.builder)
	if err != nil {
		return nil, fmt.Errorf("%w", err)
	}
	defer func() { _ = c.Close() }() // nothing is left to lose
	var uploads, builds, second, syncs []float64
	for round := range uploadRounds {
		dir := filepath.Join(s.lab.Dir, "big-"+strconv.Itoa(round))
		if err := writeBig(dir, s.base); err != nil {
			return nil, err
		}
		var digest string
		for _, side := range []struct {
			times *[]float64
			do    func() error
		}{
			{&uploads, func() (err error) { digest, err = put(ctx, c, dir); return err }},
			{&builds, func() error { return s.rpcEvents(ctx, uploaded(digest), func(*builderv1.BuildEvent) {}) }},
			{&second, func() (err error) {
				again, err := put(ctx, c, dir)
				if err == nil && again != digest {
					err = fmt.Errorf("the same context is %s and then %s", digest, again)
				}
				return err
			}},
			{&syncs, func() error { return s.sync(ctx, s.daemon, dir) }},
		} {
			start := time.Now()
			if err := side.do(); err != nil {
				return nil, fmt.Errorf("round %d: %w", round, err)
			}
			*side.times = append(*side.times, uploadMiB/time.Since(start).Seconds())
		}
		if err := os.RemoveAll(dir); err != nil {
			return nil, fmt.Errorf("%w", err)
		}
	}
	peak, err := peakMemory(s.builderPID)
	if err != nil {
		return nil, err
	}
	sync := median(syncs)
	both := 1 / (1/median(uploads) + 1/median(builds))
	rates := func(name, peer string, ours, theirs float64, limit string) row {
		return row{Name: name, Unit: "MiB/s", Ours: ours, Peer: peer, PeerValue: theirs, Ratio: ours / theirs, N: uploadRounds, limit: limit}
	}
	return []row{
		rates(u.label(), "buildctl, sync of the directory", median(uploads), sync, "ratio near 1"),
		rates("upload_1gib_and_build_vs_buildctl_sync", "buildctl, sync of the directory", both, sync, ""),
		rates("upload_1gib_again_vs_first", "the first upload", median(second), median(uploads), "ratio > 1"),
		{
			Name: "upload_1gib_builder_memory", Unit: "MiB", Ours: peak, Peer: "the bound", PeerValue: 128, Ratio: peak / 128,
			N: uploadRounds, limit: "< 128 MiB",
		},
	}, nil
}

// writeBig writes a directory of 1 GiB that does not compress, and a Dockerfile
// that reads it without copying it.
func writeBig(dir, base string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("%w", err)
	}
	for i := range uploadFiles {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%04d.bin", i)))
		if err == nil {
			_, err = io.CopyN(f, rand.Reader, uploadMiB<<20/uploadFiles)
		}
		if err != nil {
			return fmt.Errorf("%w", err)
		}
		if err := f.Close(); err != nil {
			return fmt.Errorf("%w", err)
		}
	}
	text := fmt.Sprintf("FROM %s\nRUN --mount=type=bind,target=/ctx ls /ctx | wc -l >/n # %d\n", base, time.Now().UnixNano())
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o644); err != nil {
		return fmt.Errorf("%w", err)
	}
	return nil
}

func put(ctx context.Context, c *client.Client, dir string) (string, error) {
	up, err := c.UploadDir(ctx, "bench", dir)
	if err != nil {
		return "", fmt.Errorf("%w", err)
	}
	return up.GetDigest(), nil
}

func uploaded(digest string) *builderv1.BuildSpec {
	return &builderv1.BuildSpec{
		Project: "bench",
		Context: &builderv1.Context{Kind: &builderv1.Context_Uploaded{Uploaded: &builderv1.UploadedContext{Digest: digest}}},
	}
}

// sync has buildctl build the directory at an address, which is a sync of all of it.
func (s *stage) sync(ctx context.Context, addr, dir string) error {
	_, err := lab.Exec(ctx, lab.Command{Path: s.buildctl, Args: []string{
		"--addr", addr, "build", "--progress", "quiet", "--frontend", "dockerfile.v0", "--local", "context=" + dir, "--local", "dockerfile=" + dir,
	}})
	return err
}

// peakMemory is the most that a process has had resident, in MiB.
func peakMemory(pid int) (float64, error) {
	kib, err := memoryOf(pid, "VmHWM:")
	return kib / 1024, err
}
