package buildkit

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// letGo is how long a cancelled solve may take to end in the daemon before its
// build is given its end all the same; BuildKit's client itself waits five
// seconds for the last status of a daemon that hangs.
const letGo = 2 * time.Second

// Accept implements build.Daemon.
func (d *Daemon) Accept(_ context.Context, spec build.Spec) error {
	for field, source := range spec.Contexts() {
		if source.Git == nil {
			continue
		}
		if err := d.opts.Guard.CheckURL(source.Git.URL); err != nil {
			if f, ok := errors.AsType[*fault.Error](err); ok {
				f.Field = field + ".git.url"
			}
			return err
		}
	}
	_, root, err := d.solveOpt("", spec)
	if root != nil {
		err = errors.Join(err, root.Close())
	}
	return err
}

// Solve implements build.Daemon.
func (d *Daemon) Solve(ctx context.Context, id string, spec build.Spec, sink func(any)) build.Result {
	progress := NewProgress()
	opt, root, err := d.solveOpt(id, spec)
	if err != nil {
		return build.Result{Failure: FailureOf(err, progress)}
	}
	sources := newSourcePolicy(d.opts.Guard, spec.Secrets...)
	opt.SourcePolicyProvider = sources.attachable()
	statuses := make(chan *client.SolveStatus, 64)
	type answer struct {
		res *client.SolveResponse
		err error
	}
	done := make(chan answer, 1)
	started := time.Now()
	go func() {
		res, err := d.client.Solve(ctx, nil, opt, statuses)
		if root != nil {
			err = errors.Join(err, root.Close())
		}
		done <- answer{res, err}
	}()

	giveUp := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(letGo, func() { close(giveUp) }) })
	defer stop()
	for open := true; open; {
		select {
		case status, ok := <-statuses:
			if open = ok; ok {
				progress.Update(status, sink)
			}
		case <-giveUp:
			go drain(statuses)
			return build.Result{Failure: FailureOf(ctx.Err(), progress), Steps: progress.Counts(), Times: progress.Times(started)}
		}
	}
	end := <-done
	result := build.Result{Steps: progress.Counts(), Times: progress.Times(started)}
	if end.err != nil {
		result.Failure = FailureOf(sources.explain(end.err), progress)
		return result
	}
	result.Outputs = outputs(spec.Outputs, end.res.ExporterResponse)
	return result
}

// drain reads what nobody waits for any more: BuildKit's client does not end
// while its channel is full. The client closes it within its own bounds.
func drain(statuses <-chan *client.SolveStatus) {
	for range statuses {
		continue
	}
}

func outputs(wanted []build.Output, response map[string]string) []build.OutputResult {
	results := make([]build.OutputResult, 0, len(wanted))
	for _, out := range wanted {
		results = append(results, ImageOf(response, out.Registry.Tags))
	}
	return results
}

// ImageOf reads what the image exporter answers. Its digest is empty when no image
// was exported.
func ImageOf(response map[string]string, tags []string) build.OutputResult {
	image := build.OutputResult{Digest: response[exptypes.ExporterImageDigestKey], Tags: tags}
	raw, err := base64.StdEncoding.DecodeString(response[exptypes.ExporterImageDescriptorKey])
	if err != nil {
		return image
	}
	var desc ocispecs.Descriptor
	if json.Unmarshal(raw, &desc) == nil {
		image.MediaType = desc.MediaType
	}
	return image
}

// solveOpt says in BuildKit's terms what a spec asks for. The root, when there
// is one, is open until the solve has ended.
func (d *Daemon) solveOpt(id string, spec build.Spec) (client.SolveOpt, *os.Root, error) {
	opt := client.SolveOpt{
		Ref:           id,
		Frontend:      "dockerfile.v0",
		FrontendAttrs: frontendAttrs(spec),
		// A name for the context that stays (addContext makes it whole) has the daemon
		// ask for changed files only, also when the builder has started anew.
		SharedKey: "kiln:" + spec.Project,
	}
	root, err := d.addContext(&opt, spec)
	if err != nil {
		return client.SolveOpt{}, nil, err
	}
	if tags := spec.Tags(); len(tags) > 0 {
		attrs := map[string]string{"name": strings.Join(tags, ","), "push": "true"}
		if compression := spec.Outputs[0].Registry.Compression; compression != "" {
			attrs["compression"], attrs["force-compression"] = compression, "true"
		}
		opt.Exports = []client.ExportEntry{{Type: client.ExporterImage, Attrs: attrs}}
	}
	for _, from := range spec.Cache.Imports {
		opt.CacheImports = append(opt.CacheImports, client.CacheOptionsEntry{Type: from.Type, Attrs: from.Attributes})
	}
	for _, to := range spec.Cache.Exports {
		opt.CacheExports = append(opt.CacheExports, client.CacheOptionsEntry{Type: to.Type, Attrs: to.Attributes})
	}
	return opt, root, nil
}

func frontendAttrs(spec build.Spec) map[string]string {
	attrs := make(map[string]string)
	if spec.Dockerfile.Inline == "" && spec.Dockerfile.Path != "" {
		attrs["filename"] = spec.Dockerfile.Path
	}
	if spec.Target != "" {
		attrs["target"] = spec.Target
	}
	for name, value := range spec.BuildArgs {
		attrs["build-arg:"+name] = value
	}
	for name, value := range spec.Labels {
		attrs["label:"+name] = value
	}
	if len(spec.Platforms) > 0 {
		attrs["platform"] = strings.Join(spec.Platforms, ",")
	}
	switch {
	case spec.NoCache:
		attrs["no-cache"] = ""
	case len(spec.NoCacheStages) > 0:
		attrs["no-cache"] = strings.Join(spec.NoCacheStages, ",")
	}
	if spec.Pull {
		attrs["image-resolve-mode"] = "pull"
	}
	return attrs
}
