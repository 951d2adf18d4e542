package e2e_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"google.golang.org/grpc/codes"

	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// Annotations stand in the manifest that the registry serves.
func TestFieldAnnotations(t *testing.T) {
	s := sharedStack(t)
	spec := dockerfile("FROM scratch\nCOPY <<EOF /x\nx\nEOF\n", s.ref("annotated"))
	spec.Annotations = map[string]string{"org.example.note": "a=b, \"c\"", "org.opencontainers.image.source": "https://example.org"}
	s.succeed(t, spec)
	img := labtest.Must(image.Pull(t.Context(), s.ref("annotated"), ""))(t)
	if got := labtest.Must(img.Manifest())(t).Annotations; got["org.example.note"] != "a=b, \"c\"" || got["org.opencontainers.image.source"] != "https://example.org" {
		t.Errorf("annotations: %q", got)
	}
}

// Several registry outputs: every tag serves the digest that its output names, and
// layers are compressed as each says, of one and the same build.
func TestFieldOutputsRegistry(t *testing.T) {
	s := sharedStack(t)
	spec := dockerfile("FROM scratch\nCOPY <<EOF /x\n" + unique() + "\nEOF\n")
	spec.NoCache = true
	outputs := []struct {
		compression builderv1.Compression
		layer       types.MediaType
		names       []string
	}{
		{builderv1.Compression_COMPRESSION_ZSTD, types.OCILayerZStd, []string{"zstd"}},
		{builderv1.Compression_COMPRESSION_UNSPECIFIED, types.OCILayer, []string{"plain", "plain-too"}},
		{builderv1.Compression_COMPRESSION_UNCOMPRESSED, types.OCIUncompressedLayer, []string{"none"}},
		{builderv1.Compression_COMPRESSION_ESTARGZ, types.OCILayer, []string{"estargz"}},
	}
	for _, out := range outputs {
		var tags []string
		for _, name := range out.names {
			tags = append(tags, s.ref("compressed-"+name))
		}
		o := push(tags...)[0]
		o.GetRegistry().Compression = out.compression
		spec.Outputs = append(spec.Outputs, o)
	}
	r := s.succeed(t, spec)
	content := ""
	for i, out := range outputs {
		result := r.outcome.GetOutputs()[i]
		for _, tag := range result.GetTags() {
			if desc := labtest.Must(image.Descriptor(t.Context(), tag))(t); desc.Digest.String() != result.GetDigest() || string(desc.MediaType) != result.GetMediaType() {
				t.Errorf("%s: the outcome says %s (%s), the registry serves %s (%s)", tag, result.GetDigest(), result.GetMediaType(), desc.Digest, desc.MediaType)
			}
			img := labtest.Must(image.Pull(t.Context(), tag, ""))(t)
			if got := labtest.Must(img.Manifest())(t).Layers[0].MediaType; got != out.layer {
				t.Errorf("%s has layers of type %s, want %s", tag, got, out.layer)
			}
		}
		if out.compression == builderv1.Compression_COMPRESSION_ZSTD {
			continue // go-containerregistry reads it not by itself
		}
		if got := file(t, s.ref("compressed-"+out.names[0]), "", "/x"); content == "" {
			content = got
		} else if got != content {
			t.Errorf("the outputs are of different builds: %q and %q", got, content)
		}
	}
}

// artifact reads an artifact whole, in two parts.
func (s *stack) artifact(t *testing.T, id, name string) []byte {
	t.Helper()
	read := func(offset int64) []byte {
		stream := labtest.Must(s.api.DownloadArtifact(t.Context(), &builderv1.DownloadArtifactRequest{BuildId: id, Artifact: name, Offset: offset}))(t)
		var data []byte
		for {
			res, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return data
			}
			if err != nil {
				t.Fatal(err)
			}
			data = append(data, res.GetData()...)
		}
	}
	whole := read(0)
	if rest := read(10); !bytes.Equal(rest, whole[10:]) {
		t.Errorf("%s from byte 10 on has %d bytes, want %d", name, len(rest), len(whole)-10)
	}
	return whole
}

// A docker archive, an OCI archive and a tree are kept beside a push, and hold the
// same image; the outcome tells their digests, types and sizes.
func TestFieldOutputsArtifacts(t *testing.T) {
	s := sharedStack(t)
	spec := dockerfile("FROM "+s.base+" AS build\nRUN mkdir -p /out/sub && echo kept >/out/sub/file && chmod 750 /out/sub/file\nFROM scratch\nCOPY --from=build /out /\n", s.ref("beside"))
	spec.Outputs = append(spec.Outputs,
		&builderv1.Output{Kind: &builderv1.Output_Archive{Archive: &builderv1.ArchiveOutput{
			Format: builderv1.ArchiveFormat_ARCHIVE_FORMAT_DOCKER, Tags: []string{"kept:1", "kept:2"},
		}}},
		&builderv1.Output{Kind: &builderv1.Output_Archive{Archive: &builderv1.ArchiveOutput{
			Format: builderv1.ArchiveFormat_ARCHIVE_FORMAT_OCI, Artifact: "oci.tar", Tags: []string{"kept:3"},
		}}},
		&builderv1.Output{Kind: &builderv1.Output_Local{Local: &builderv1.LocalOutput{}}},
	)
	r := s.succeed(t, spec)
	outputs := r.outcome.GetOutputs()
	for i, want := range []string{"", "image.tar", "oci.tar", "files.tar"} {
		if outputs[i].GetArtifact() != want || (want == "") != (outputs[i].GetSizeBytes() == 0) {
			t.Errorf("output %d: %v, want the artifact %q", i, outputs[i], want)
		}
	}
	save := func(i int) string {
		data := s.artifact(t, r.id(), outputs[i].GetArtifact())
		if int64(len(data)) != outputs[i].GetSizeBytes() {
			t.Errorf("%s has %d bytes, the outcome says %d", outputs[i].GetArtifact(), len(data), outputs[i].GetSizeBytes())
		}
		path := filepath.Join(t.TempDir(), "artifact")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	docker := save(1)
	loaded := labtest.Must(tarball.ImageFromPath(docker, nil))(t)
	if got := string(labtest.Must(image.ReadFile(loaded, "/sub/file"))(t)); got != "kept\n" {
		t.Errorf("docker archive: /sub/file is %q", got)
	}
	manifest := labtest.Must(tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(docker) }))(t)
	if tags := manifest[0].RepoTags; !slices.Equal(tags, []string{"kept:1", "kept:2"}) {
		t.Errorf("docker archive: tags %q", tags)
	}

	unpacked := t.TempDir()
	unpack(t, save(2), unpacked)
	index := labtest.Must(layout.Path(unpacked).ImageIndex())(t)
	listed := labtest.Must(index.IndexManifest())(t).Manifests[0]
	if listed.Digest.String() != outputs[2].GetDigest() || string(listed.MediaType) != outputs[2].GetMediaType() ||
		listed.Annotations["io.containerd.image.name"] != "docker.io/library/kept:3" {
		t.Errorf("OCI archive: %v, the outcome says %v", listed, outputs[2])
	}
	img := labtest.Must(layout.Path(unpacked).Image(labtest.Must(v1.NewHash(outputs[2].GetDigest()))(t)))(t)
	if got := string(labtest.Must(image.ReadFile(img, "/sub/file"))(t)); got != "kept\n" {
		t.Errorf("OCI archive: /sub/file is %q", got)
	}

	tree := t.TempDir()
	unpack(t, save(3), tree)
	if got := labtest.Must(os.ReadFile(filepath.Join(tree, "sub/file")))(t); string(got) != "kept\n" {
		t.Errorf("tree: sub/file is %q", got)
	}
	if mode := labtest.Must(os.Stat(filepath.Join(tree, "sub/file")))(t).Mode(); mode != 0o750 {
		t.Errorf("tree: sub/file has the mode %o", mode)
	}
	if outputs[3].GetMediaType() != "application/x-tar" || outputs[3].GetDigest() != "" {
		t.Errorf("tree: %v", outputs[3])
	}

	// A build that fails keeps nothing.
	failing := dockerfile("FROM " + s.base + "\nRUN false\n")
	failing.Outputs = spec.GetOutputs()[1:]
	r, _ = s.fail(t, failing)
	stream := labtest.Must(s.api.DownloadArtifact(t.Context(), &builderv1.DownloadArtifactRequest{BuildId: r.id(), Artifact: "image.tar"}))(t)
	_, err := stream.Recv()
	refused(t, err, codes.NotFound, "NOT_FOUND", "")
}

// unpack writes the regular files of a tar.
func unpack(t *testing.T, path, into string) {
	t.Helper()
	f := labtest.Must(os.Open(path))(t)
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		name := filepath.Join(into, h.Name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, labtest.Must(io.ReadAll(r))(t), h.FileInfo().Mode()); err != nil {
			t.Fatal(err)
		}
	}
}

// scanner builds an image that speaks the protocol of SBOM generators, and pushes it.
// https://github.com/moby/buildkit/blob/master/docs/attestations/sbom-protocol.md
func (s *stack) scanner(t *testing.T) string {
	t.Helper()
	spec := inline(map[string]string{
		"Dockerfile": "FROM " + s.base + "\nCOPY scan /scan\nENTRYPOINT [\"/bin/sh\", \"/scan\"]\n",
		"scan": `set -e
cat >"$BUILDKIT_SCAN_DESTINATION/$(basename "$BUILDKIT_SCAN_SOURCE").spdx.json" <<EOF
{"_type": "https://in-toto.io/Statement/v0.1", "predicateType": "https://spdx.dev/Document",
 "predicate": {"spdxVersion": "SPDX-2.3", "name": "scanned $(ls "$BUILDKIT_SCAN_SOURCE" | tr '\n' ' ')"}}
EOF
`,
	}, s.ref("scanner"))
	s.succeed(t, spec)
	return s.ref("scanner")
}

// Provenance and an SBOM stand beside the image, in the index that the registry
// serves; neither holds a secret of the build.
func TestFieldAttestations(t *testing.T) {
	s := sharedStack(t)
	generator := s.scanner(t)
	spec := dockerfile("FROM "+s.base+"\nARG WHO\nRUN --mount=type=secret,id=s echo $WHO >/scanned\n", s.ref("attested"))
	spec.BuildArgs = map[string]string{"WHO": "argument"}
	spec.Secrets = []*builderv1.Secret{{Id: "s", Value: []byte("secret-of-the-build")}}
	spec.Attestations = &builderv1.Attestations{Provenance: builderv1.ProvenanceMode_PROVENANCE_MODE_MAX, Sbom: true, SbomGenerator: generator}
	r := s.succeed(t, spec)
	if r.outcome.GetOutputs()[0].GetMediaType() != string(types.OCIImageIndex) {
		t.Errorf("the image is a %s, want an index", r.outcome.GetOutputs()[0].GetMediaType())
	}
	statements := attestationsOf(t, s.ref("attested"))
	if !strings.Contains(statements["https://spdx.dev/Document"], "scanned") {
		t.Errorf("SBOM: %q", statements["https://spdx.dev/Document"])
	}
	provenance := statements["https://slsa.dev/provenance/v1"]
	if !strings.Contains(provenance, "argument") || !strings.Contains(provenance, "buildkit") {
		t.Errorf("provenance of mode max: %q", provenance)
	}
	if strings.Contains(provenance, "secret-of-the-build") {
		t.Error("the provenance holds the secret")
	}

	spec.Attestations = &builderv1.Attestations{Provenance: builderv1.ProvenanceMode_PROVENANCE_MODE_MIN}
	s.succeed(t, spec)
	if statements := attestationsOf(t, s.ref("attested")); len(statements) != 1 || strings.Contains(statements["https://slsa.dev/provenance/v1"], `"argument"`) {
		t.Errorf("provenance of mode min: %q", statements)
	}
	spec.Attestations = &builderv1.Attestations{Sbom: true, SbomGenerator: "registry.example/scanner:1"}
	refused(t, s.build(t, spec).err, codes.PermissionDenied, "POLICY_DENIED", "")
}

// attestationsOf returns the statements beside an image, by their predicate's type.
func attestationsOf(t *testing.T, ref string) map[string]string {
	t.Helper()
	index := labtest.Must(labtest.Must(image.Descriptor(t.Context(), ref))(t).ImageIndex())(t)
	statements := make(map[string]string)
	for _, desc := range labtest.Must(index.IndexManifest())(t).Manifests {
		if desc.Annotations["vnd.docker.reference.type"] != "attestation-manifest" {
			continue
		}
		img := labtest.Must(index.Image(desc.Digest))(t)
		for _, layer := range labtest.Must(img.Layers())(t) {
			reader := labtest.Must(layer.Uncompressed())(t)
			data := labtest.Must(io.ReadAll(reader))(t)
			if err := reader.Close(); err != nil {
				t.Error(err)
			}
			var statement struct{ PredicateType string }
			if err := json.Unmarshal(data, &statement); err != nil {
				t.Fatal(err)
			}
			statements[statement.PredicateType] = string(data)
		}
	}
	return statements
}
