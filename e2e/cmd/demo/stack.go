package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
)

// daemon is a buildkitd and the builder in front of it.
type daemon struct {
	name string
	// addr is buildkitd's own address, for buildctl.
	addr string
	// builder is host:port of the builder, for kiln.
	builder string
}

// demo is all that runs, and where its files are.
type demo struct {
	lab                        *lab.Lab
	first, second              daemon
	registry, base             string
	kiln, buildctl, grpcurlBin string
	app, inline, results       string
}

// startDemo starts `kiln up` as a user would, and beside it a second daemon with
// nothing, with a builder of its own and the same registry. What it returns must
// be closed, also when there is an error.
func startDemo(ctx context.Context) (*demo, error) {
	root, err := lab.RepoRoot()
	if err != nil {
		return nil, err
	}
	d := &demo{
		app:     filepath.Join(root, "examples", "guide-app"),
		inline:  filepath.Join(root, "examples", "inline", "build.json"),
		results: filepath.Join(root, ".run", "demo.json"),
	}
	for name, path := range map[string]*string{"kiln": &d.kiln, "buildctl": &d.buildctl, "grpcurl": &d.grpcurlBin} {
		if *path, err = lab.Bin(name); err != nil {
			return nil, err
		}
	}
	dir := filepath.Join(root, ".run", "demo")
	if d.lab, err = lab.New(); err != nil {
		return nil, err
	}
	if err := d.own(dir); err != nil {
		return d, err
	}
	dataDir := filepath.Join(dir, "up")
	if err := forget(ctx, dataDir); err != nil {
		return d, err
	}
	d.lab.OnClose("data directory", func(context.Context) error { return os.RemoveAll(dataDir) })
	return d, d.start(ctx, dataDir)
}

func (d *demo) start(ctx context.Context, dataDir string) error {
	up, err := d.lab.StartUp(ctx, lab.UpOptions{DataDir: dataDir, Detach: true})
	if err != nil {
		return err
	}
	d.registry = up.Registry
	d.first = daemon{name: "first", addr: up.Buildkitd, builder: up.Builder}
	bare, err := d.lab.StartBuildkitd(ctx, lab.BuildkitdOptions{Registries: []string{up.Registry}})
	if err != nil {
		return err
	}
	builder, err := d.lab.StartBuilder(ctx, lab.BuilderConfig(nil, bare.Addr, up.Registry), lab.ServiceOptions{})
	if err != nil {
		return err
	}
	d.second = daemon{name: "second", addr: bare.Addr, builder: builder.Addr}
	note("builder %s, registry %s; second builder %s", d.first.builder, d.registry, d.second.builder)
	d.base, err = image.PushBase(ctx, d.registry)
	if err != nil {
		return err
	}
	note("base image %s, made from this machine's busybox", d.base)
	return nil
}

// close ends everything.
func (d *demo) close() error {
	if d.lab == nil {
		return nil
	}
	return d.lab.Close()
}

// own makes the demo's directory this demo's alone until the end.
func (d *demo) own(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("%w", err)
	}
	lock, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("%w", err)
	}
	d.lab.OnClose("lock", func(context.Context) error { return lock.Close() })
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("another demo is running in %s: wait for its end", dir)
	}
	return nil
}

// forget ends what an earlier demo, killed before it could clean up, left.
func forget(ctx context.Context, dataDir string) error {
	if _, err := os.Stat(dataDir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	say("Cleaning up after a demo that was killed")
	// It may be that nothing runs there any more: what counts is that the mounts
	// are gone.
	_ = lab.Down(ctx, dataDir)
	if err := lab.Clean(ctx, dataDir); err != nil {
		return err
	}
	if err := os.RemoveAll(dataDir); err != nil {
		return fmt.Errorf("%w", err)
	}
	return nil
}

// emptied removes all that a daemon has cached, and makes sure that it did.
func (d *demo) emptied(ctx context.Context, on daemon) error {
	if _, err := d.output(ctx, d.buildctl, "--addr", on.addr, "prune", "--all"); err != nil {
		return err
	}
	left, err := d.output(ctx, d.buildctl, "--addr", on.addr, "du", "--format", "{{json .}}")
	if err != nil {
		return err
	}
	if left = strings.TrimSpace(left); left != "" && left != "null" && left != "[]" {
		return fmt.Errorf("the %s daemon still has cached records after a prune: %s", on.name, left)
	}
	return nil
}

// output runs a command and returns its standard output.
func (d *demo) output(ctx context.Context, path string, args ...string) (string, error) {
	out, err := lab.Exec(ctx, lab.Command{Path: path, Args: args})
	return out.Stdout, err
}

// checkImage asks the registry what it serves under the tag that was built.
func (d *demo) checkImage(ctx context.Context, digest string) error {
	ref := d.tag("warm")
	served, err := image.Digest(ctx, ref)
	if err != nil {
		return err
	}
	if served != digest {
		return fmt.Errorf("%s: the build said %s, the registry serves %s", ref, digest, served)
	}
	img, err := image.Pull(ctx, ref, "")
	if err != nil {
		return err
	}
	page, err := image.ReadFile(img, "/srv/site/index.html")
	if err != nil {
		return err
	}
	if n := strings.Count(string(page), "<tr><td>"); n != 8 {
		return fmt.Errorf("%s: the page in the image has %d symbols, not 8", ref, n)
	}
	note("%s is %s, as the build said, and holds the site", ref, served)
	return nil
}

// grpcurl runs the README's call: a build whose files all stand in the request.
func (d *demo) grpcurl(ctx context.Context) error {
	say("The README's call: grpcurl -plaintext -d @ %s kiln.builder.v1.BuilderService/Build <examples/inline/build.json", d.first.builder)
	request, err := os.ReadFile(d.inline)
	if err != nil {
		return fmt.Errorf("%w", err)
	}
	call := strings.ReplaceAll(string(request), "localhost:5000", d.registry)
	out, err := d.output(ctx, d.grpcurlBin, "-plaintext", "-max-time", "60", "-d", call, d.first.builder, "kiln.builder.v1.BuilderService/Build")
	if err != nil {
		return err
	}
	digest, err := lastDigest(out)
	if err != nil {
		return fmt.Errorf("%w in\n%s", err, out)
	}
	ref := d.registry + "/hello:1"
	img, err := image.Pull(ctx, ref+"@"+digest, "")
	if err != nil {
		return err
	}
	text, err := image.ReadFile(img, "/hello.txt")
	if err != nil {
		return err
	}
	note("%s is %s; its /hello.txt says %q", ref, digest, strings.TrimSpace(string(text)))
	return nil
}

// lastDigest returns the digest in the last event of a stream of responses.
func lastDigest(stream string) (string, error) {
	type response struct {
		Event struct {
			Outcome *struct {
				State   string
				Outputs []struct{ Digest string }
			}
		}
	}
	var last response
	for dec := json.NewDecoder(strings.NewReader(stream)); dec.More(); {
		last = response{}
		if err := dec.Decode(&last); err != nil {
			return "", fmt.Errorf("reading the events: %w", err)
		}
	}
	o := last.Event.Outcome
	if o == nil || o.State != "BUILD_STATE_SUCCEEDED" || len(o.Outputs) != 1 {
		return "", errors.New("no outcome of success at the end")
	}
	return o.Outputs[0].Digest, nil
}

// pause is how long a daemon gets, between measurements, to end what it does
// after an answer: the garbage of the last build.
const pause = 200 * time.Millisecond
