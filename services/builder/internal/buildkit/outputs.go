package buildkit

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/artifacts"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// treeType is the media type of a tree's artifact.
const treeType = "application/x-tar"

// output is one output of a job, and the exporter that makes it.
type output struct {
	want     build.Output
	exporter int // its place among the solve's exporters; pushes may share one
	create   func() (*artifacts.Writer, error)

	mu       sync.Mutex // the daemon writes from a goroutine of the session
	writer   *artifacts.Writer
	response map[string]string // what the daemon says of an archive
	err      error             // of writing, which the daemon would only word
}

// addOutputs asks for an exporter of each artifact, and one for all pushes of one
// compression: they are of the same image. Pushes come last, because the daemon
// answers with what the last of its exporters said of an image.
func (j *job) addOutputs() error {
	pushes := make(map[string][]*output) // by compression
	usual := usualCompression(j.spec.Outputs)
	for _, want := range j.spec.Outputs {
		out := &output{want: want}
		j.outputs = append(j.outputs, out)
		if want.Registry != nil {
			compression := cmp.Or(want.Registry.Compression, usual)
			pushes[compression] = append(pushes[compression], out)
			continue
		}
		kind, attrs := client.ExporterTar, map[string]string{}
		if want.Archive != nil {
			kind, attrs = archiveType(*want.Archive), j.imageAttrs(want.Archive.Tags, usual)
		}
		out.create = func() (*artifacts.Writer, error) {
			return j.daemon.opts.Artifacts.Create(j.spec.Project, j.build, artifactOf(want))
		}
		j.addExport(client.ExportEntry{Type: kind, Attrs: attrs, Output: out.begin}, out)
	}
	for _, compression := range slices.Sorted(maps.Keys(pushes)) {
		var tags []string
		for _, out := range pushes[compression] {
			tags = append(tags, out.want.Registry.Tags...)
		}
		attrs := j.imageAttrs(tags, compression)
		attrs["push"] = "true"
		j.addExport(client.ExportEntry{Type: client.ExporterImage, Attrs: attrs}, pushes[compression]...)
	}
	return nil
}

func (j *job) addExport(entry client.ExportEntry, of ...*output) {
	for _, out := range of {
		out.exporter = len(j.opt.Exports)
	}
	j.opt.Exports = append(j.opt.Exports, entry)
}

// usualCompression is that of outputs that name none: the daemon's default, which
// takes layers as they are, unless another output has them made anew. Then they are
// there in several forms, and the default would take any.
func usualCompression(outputs []build.Output) string {
	for _, out := range outputs {
		if out.Registry != nil && out.Registry.Compression != "" {
			return "gzip"
		}
	}
	return ""
}

func (j *job) imageAttrs(tags []string, compression string) map[string]string {
	attrs := make(map[string]string)
	if compression != "" {
		attrs["compression"], attrs["force-compression"] = compression, "true"
	}
	if len(tags) > 0 {
		attrs["name"] = strings.Join(tags, ",")
	}
	for key, value := range j.spec.Annotations {
		attrs["annotation."+key] = value
	}
	if j.spec.SourceDateEpoch != nil {
		// Files keep the time at which a step wrote them otherwise, and no two builds
		// give the same layer.
		attrs["rewrite-timestamp"] = "true"
	}
	return attrs
}

func archiveType(archive build.ArchiveOutput) string {
	if archive.OCI {
		return client.ExporterOCI
	}
	return client.ExporterDocker
}

func artifactOf(out build.Output) string {
	switch {
	case out.Archive != nil:
		return out.Archive.Artifact
	case out.Local != nil:
		return out.Local.Artifact
	default:
		return ""
	}
}

// begin is called when the daemon begins to send an artifact.
func (o *output) begin(response map[string]string) (io.WriteCloser, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.writer != nil {
		return nil, errors.New("the artifact is being written already")
	}
	o.response = response
	o.writer, o.err = o.create()
	return o, o.err
}

// Write implements io.Writer.
func (o *output) Write(data []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.writer == nil {
		return 0, errors.New("the build has ended")
	}
	n, err := o.writer.Write(data)
	if err != nil {
		o.err = err
	}
	return n, err
}

// Close implements io.Closer. The daemon closes an artifact also when it fails: it
// counts when the solve has succeeded.
func (o *output) Close() error { return nil }

func (o *output) commit() (int64, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.writer == nil {
		return 0, fault.New(fault.Internal, "INTERNAL", fmt.Sprintf("buildkitd did not send the artifact %q", artifactOf(o.want)), "build again")
	}
	writer := o.writer
	o.writer = nil
	return writer.Commit()
}

func (o *output) abort() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.writer == nil {
		return nil
	}
	writer := o.writer
	o.writer = nil
	return writer.Abort()
}

// writeFailed is the error of the first artifact that could not be written.
func (j *job) writeFailed() error {
	for _, out := range j.outputs {
		out.mu.Lock()
		err := out.err
		out.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// finish keeps the artifacts of a solve that succeeded, and says what each output
// has become.
func (j *job) finish(ctx context.Context, response map[string]string) ([]build.OutputResult, error) {
	exported, err := j.exported(ctx)
	if err != nil {
		return nil, err
	}
	results := make([]build.OutputResult, 0, len(j.outputs))
	for _, out := range j.outputs {
		if out.want.Registry != nil {
			image := ImageOf(response, out.want.Registry.Tags)
			if desc := exported[int64(out.exporter)]; desc != nil {
				image.Digest, image.MediaType = desc.GetDigest(), desc.GetMediaType()
			}
			results = append(results, image)
			continue
		}
		size, err := out.commit()
		if err != nil {
			return nil, err
		}
		result := build.OutputResult{MediaType: treeType}
		if out.want.Archive != nil {
			result = ImageOf(out.response, out.want.Archive.Tags)
		}
		result.Artifact, result.Size = artifactOf(out.want), size
		results = append(results, result)
	}
	return results, nil
}

// askHistory bounds the question for what the daemon remembers of a solve.
const askHistory = 5 * time.Second

// exported returns what each exporter has made, when the answer of the solve does
// not tell: it holds the digest of one image. The daemon's history holds all.
func (j *job) exported(ctx context.Context) (map[int64]*controlapi.Descriptor, error) {
	pushes := make(map[int]bool)
	for _, out := range j.outputs {
		if out.want.Registry != nil {
			pushes[out.exporter] = true
		}
	}
	if len(pushes) < 2 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askHistory)
	defer cancel()
	stream, err := j.daemon.client.ControlClient().ListenBuildHistory(ctx, &controlapi.BuildHistoryRequest{Ref: j.opt.Ref, EarlyExit: true})
	if err != nil {
		return nil, err
	}
	event, err := stream.Recv()
	if err != nil {
		return nil, fault.Wrap(err, fault.FailedPrecondition, "EXPORT_FAILED", "the images were pushed, and buildkitd does not remember their digests",
			"keep the daemon's build history on, or give all registry outputs the same compression")
	}
	return event.GetRecord().GetResult().GetResults(), nil
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
