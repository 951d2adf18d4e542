package grpcapi

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/distribution/reference"

	"github.com/kilnbuild/kiln/pkg/fault"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// Names of artifacts when a request names none.
const (
	defaultArchive = "image.tar"
	defaultTree    = "files.tar"
)

func outputsOf(spec *build.Spec, in *builderv1.BuildSpec) error {
	artifacts := make(map[string]bool)
	for i, out := range in.GetOutputs() {
		field := fmt.Sprintf("spec.outputs[%d]", i)
		var translated build.Output
		var artifact string
		var err error
		switch kind := out.GetKind().(type) {
		case *builderv1.Output_Registry:
			field += ".registry"
			push := &build.RegistryOutput{Compression: compressions[kind.Registry.GetCompression()]}
			push.Tags, err = tagsOf(field, kind.Registry.GetTags())
			translated.Registry = push
		case *builderv1.Output_Archive:
			field += ".archive"
			translated.Archive, err = archiveOf(field, kind.Archive, len(spec.Platforms))
			artifact = cmp.Or(kind.Archive.GetArtifact(), defaultArchive)
		case *builderv1.Output_Local:
			field += ".local"
			artifact = cmp.Or(kind.Local.GetArtifact(), defaultTree)
			translated.Local = &build.LocalOutput{Artifact: artifact}
		default:
			err = fault.Invalid(field, "", "is missing", "set registry, archive or local")
		}
		if err != nil {
			return err
		}
		if artifact != "" && artifacts[artifact] {
			return fault.Invalid(field+".artifact", artifact, "is the name of two artifacts", "give each its own name")
		}
		artifacts[artifact] = true
		spec.Outputs = append(spec.Outputs, translated)
	}
	return nil
}

func archiveOf(field string, in *builderv1.ArchiveOutput, platforms int) (*build.ArchiveOutput, error) {
	out := &build.ArchiveOutput{
		OCI:      in.GetFormat() == builderv1.ArchiveFormat_ARCHIVE_FORMAT_OCI,
		Artifact: cmp.Or(in.GetArtifact(), defaultArchive),
	}
	if !out.OCI && platforms > 1 {
		return nil, fault.Invalid(field+".format", in.GetFormat().String(), "holds one platform only, and the build has several",
			"use ARCHIVE_FORMAT_OCI, or build one platform")
	}
	var err error
	out.Tags, err = tagsOf(field, in.GetTags())
	return out, err
}

var compressions = map[builderv1.Compression]string{
	builderv1.Compression_COMPRESSION_GZIP:         "gzip",
	builderv1.Compression_COMPRESSION_ZSTD:         "zstd",
	builderv1.Compression_COMPRESSION_ESTARGZ:      "estargz",
	builderv1.Compression_COMPRESSION_UNCOMPRESSED: "uncompressed",
}

func tagsOf(field string, in []string) ([]string, error) {
	var tags []string
	for i, tag := range in {
		full, err := tagOf(fmt.Sprintf("%s.tags[%d]", field, i), tag)
		if err != nil {
			return nil, err
		}
		tags = append(tags, full)
	}
	return tags, nil
}

func tagOf(field, tag string) (string, error) {
	const remedy = `write it like "localhost:5000/web:1.2": a repository in lower case, then ":" and a tag`
	named, err := reference.ParseNormalizedNamed(tag)
	if err != nil {
		return "", fault.Invalid(field, tag, "is not an image reference: "+err.Error(), remedy)
	}
	if _, ok := named.(reference.Digested); ok {
		return "", fault.Invalid(field, tag, "names a digest, and the digest is what the build gives", remedy)
	}
	return reference.TagNameOnly(named).String(), nil
}

// annotations makes sure that there is an image to annotate.
func annotations(spec *build.Spec, _ *builderv1.BuildSpec) error {
	for key := range spec.Annotations {
		if strings.ContainsFunc(key, unicode.IsSpace) {
			return fault.Invalid("spec.annotations", key, "has a space in its name", `write it like "org.opencontainers.image.source"`)
		}
	}
	if len(spec.Annotations) > 0 && !slices.ContainsFunc(spec.Outputs, isImage) {
		return fault.Invalid("spec.annotations", "", "is for images, and the build has no output that is one", "add a registry or archive output, or leave it out")
	}
	return nil
}

func isImage(out build.Output) bool { return out.Registry != nil || out.Archive != nil }

// attestations makes sure that what is stated can be attached: to an image in the
// registry or in an OCI archive.
func attestations(spec *build.Spec, in *builderv1.BuildSpec) error {
	wanted := in.GetAttestations()
	out := build.Attestations{Provenance: provenances[wanted.GetProvenance()], SBOM: wanted.GetSbom()}
	if generator := wanted.GetSbomGenerator(); generator != "" {
		if !out.SBOM {
			return fault.Invalid("spec.attestations.sbom_generator", generator, "is for an SBOM, and none is asked for", "set spec.attestations.sbom, or leave it out")
		}
		var err error
		if out.SBOMGenerator, err = imageOf("spec.attestations.sbom_generator", generator); err != nil {
			return err
		}
	}
	if out == (build.Attestations{}) {
		return nil
	}
	for i, output := range spec.Outputs {
		if output.Archive != nil && !output.Archive.OCI {
			return fault.Invalid(fmt.Sprintf("spec.outputs[%d].archive.format", i), builderv1.ArchiveFormat_ARCHIVE_FORMAT_DOCKER.String(),
				"cannot hold attestations", "use ARCHIVE_FORMAT_OCI, or leave spec.attestations out")
		}
	}
	if !slices.ContainsFunc(spec.Outputs, isImage) {
		return fault.Invalid("spec.attestations", "", "is for images, and the build has no output that is one", "add a registry or OCI archive output, or leave it out")
	}
	spec.Attestations = out
	return nil
}

var provenances = map[builderv1.ProvenanceMode]string{
	builderv1.ProvenanceMode_PROVENANCE_MODE_MIN: "min",
	builderv1.ProvenanceMode_PROVENANCE_MODE_MAX: "max",
}
