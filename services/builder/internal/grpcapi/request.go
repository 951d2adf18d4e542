package grpcapi

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"

	"github.com/kilnbuild/kiln/pkg/fault"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// Translator turns requests, whose bounds are checked already, into specs.
type Translator struct {
	// CacheRepository is the repository below which each project's cache lives.
	CacheRepository string
}

// maxInlineBytes bounds all files of an inline context together.
const maxInlineBytes = 4 << 20

// Spec checks what the contract's rules cannot say and returns the domain's form.
func (t Translator) Spec(in *builderv1.BuildSpec) (build.Spec, error) {
	if in == nil {
		return build.Spec{}, fault.Invalid("spec", "", "is missing",
			`say what to build, for example {"spec": {"context": {"inline": {}}, "dockerfile": {"inline": "FROM scratch"}}}`)
	}
	if err := refuseUnserved(in); err != nil {
		return build.Spec{}, err
	}
	spec := build.Spec{
		Project: cmp.Or(in.GetProject(), build.DefaultProject), Target: in.GetTarget(),
		BuildArgs: in.GetBuildArgs(), Labels: in.GetLabels(),
		NoCache: in.GetNoCache(), NoCacheStages: in.GetNoCacheStages(), Pull: in.GetPull(),
		Timeout: in.GetTimeout().AsDuration(),
	}
	var err error
	if spec.Context, err = contextOf(in.GetContext()); err != nil {
		return build.Spec{}, err
	}
	if spec.Dockerfile, err = dockerfileOf(in, spec.Context); err != nil {
		return build.Spec{}, err
	}
	if spec.Platforms, err = platformsOf(in.GetPlatforms()); err != nil {
		return build.Spec{}, err
	}
	if spec.Outputs, err = outputsOf(in.GetOutputs()); err != nil {
		return build.Spec{}, err
	}
	if err := t.cache(&spec, in.GetCache()); err != nil {
		return build.Spec{}, err
	}
	return spec, nil
}

// refuseUnserved refuses the fields that the contract has and the builder does
// not serve yet: what is asked for is done or refused, never left out in silence.
func refuseUnserved(in *builderv1.BuildSpec) error {
	unset := "leave it out"
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"annotations", len(in.GetAnnotations()) > 0},
		{"named_contexts", len(in.GetNamedContexts()) > 0},
		{"secrets", len(in.GetSecrets()) > 0},
		{"ssh_keys", len(in.GetSshKeys()) > 0},
		{"attestations", in.GetAttestations() != nil},
		{"extra_hosts", len(in.GetExtraHosts()) > 0},
		{"network", in.GetNetwork() != 0},
		{"shm_size_bytes", in.GetShmSizeBytes() != 0},
		{"ulimits", len(in.GetUlimits()) > 0},
		{"entitlements", len(in.GetEntitlements()) > 0},
		{"frontend", in.GetFrontend() != nil},
		{"definition", len(in.GetDefinition()) > 0},
		{"priority", in.GetPriority() != 0},
		{"source_policy_json", in.GetSourcePolicyJson() != ""},
		{"source_date_epoch", in.SourceDateEpoch != nil},
	} {
		if f.set {
			return unserved("spec."+f.name, unset+", or build through the BuildKit gateway on the same port, which serves all that buildctl and docker buildx can ask for")
		}
	}
	return nil
}

func contextOf(in *builderv1.Context) (build.Context, error) {
	switch kind := in.GetKind().(type) {
	case nil:
		return build.Context{}, fault.Invalid("spec.context", "", "is missing",
			`say what to build from: spec.context.inline {} for a Dockerfile that copies no files, spec.context.directory {"path": …}, or spec.context.git {"url": …}`)
	case *builderv1.Context_Inline:
		inline, err := inlineContext(kind.Inline)
		return build.Context{Inline: inline}, err
	case *builderv1.Context_Directory:
		dir := kind.Directory.GetPath()
		return build.Context{Directory: &build.DirectoryContext{Path: filepath.Clean(dir)}}, nil
	case *builderv1.Context_Git:
		git, err := gitContext(kind.Git)
		return build.Context{Git: git}, err
	default:
		return build.Context{}, unserved("spec.context", "use an inline, directory or git context")
	}
}

func inlineContext(in *builderv1.InlineContext) (*build.InlineContext, error) {
	const field = "spec.context.inline.files"
	var out build.InlineContext
	total := 0
	names := slices.Sorted(maps.Keys(in.GetFiles()))
	dirs := make(map[string]string) // each directory that is needed, and by which file
	for _, name := range names {
		if name == "." || !filepath.IsLocal(name) || path.Clean(name) != name || strings.ContainsAny(name, "\\\x00") {
			return nil, fault.Invalid(field, name, "is not a clean relative path",
				`write it like "src/main.go": relative, with "/", without "." and ".." and without "/" at the end`)
		}
		file := in.GetFiles()[name]
		if total += len(file.GetContent()); total > maxInlineBytes {
			return nil, fault.Invalid(field, name, fmt.Sprintf("brings the files to more than %d bytes", maxInlineBytes),
				"use a directory or git context, or build with `kiln build`, for larger contexts")
		}
		out.Files = append(out.Files, build.File{Path: name, Content: file.GetContent(), Mode: file.GetMode()})
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			dirs[dir] = name
		}
	}
	for _, name := range names {
		if below, clash := dirs[name]; clash {
			return nil, fault.Invalid(field, name, fmt.Sprintf("is a file, and %q needs it as a directory", below), "rename one of the two")
		}
	}
	return &out, nil
}

// dockerfileOf makes sure that a Dockerfile can be there.
func dockerfileOf(in *builderv1.BuildSpec, from build.Context) (build.Dockerfile, error) {
	const field = "spec.dockerfile"
	switch source := in.GetDockerfile().GetSource().(type) {
	case *builderv1.Dockerfile_Inline:
		return build.Dockerfile{Inline: source.Inline}, nil
	case *builderv1.Dockerfile_Path:
		name := source.Path
		if !filepath.IsLocal(name) || path.Clean(name) != name {
			return build.Dockerfile{}, fault.Invalid(field+".path", name, "is not a clean path in the context",
				`write it like "build/Dockerfile", relative to the context`)
		}
		return build.Dockerfile{Path: name}, inlineHas(from, name, field+".path")
	default:
		return build.Dockerfile{Path: "Dockerfile"}, inlineHas(from, "Dockerfile", field)
	}
}

func inlineHas(from build.Context, name, field string) error {
	if from.Inline == nil || slices.ContainsFunc(from.Inline.Files, func(f build.File) bool { return f.Path == name }) {
		return nil
	}
	return fault.Invalid(field, name, "is not among the files of the inline context",
		"add it to spec.context.inline.files, or send its text as spec.dockerfile.inline")
}

func platformsOf(in []string) ([]string, error) {
	var out []string
	for i, name := range in {
		field := fmt.Sprintf("spec.platforms[%d]", i)
		p, err := platforms.Parse(name)
		if err != nil || !strings.Contains(name, "/") {
			return nil, fault.Invalid(field, name, "is not a platform", `write it like "linux/amd64" or "linux/arm64/v8"`)
		}
		text := platforms.Format(platforms.Normalize(p))
		if slices.Contains(out, text) {
			return nil, fault.Invalid(field, name, "is named twice", "name each platform once")
		}
		out = append(out, text)
	}
	return out, nil
}

// pushOf makes one push of all registry outputs: they hold the same image.
func outputsOf(in []*builderv1.Output) ([]build.Output, error) {
	var all []build.Output
	for i, out := range in {
		registry := out.GetRegistry()
		if registry == nil {
			return nil, unserved(fmt.Sprintf("spec.outputs[%d]", i), "use a registry output")
		}
		push := &build.RegistryOutput{Compression: compressions[registry.GetCompression()]}
		for j, tag := range registry.GetTags() {
			full, err := tagOf(fmt.Sprintf("spec.outputs[%d].registry.tags[%d]", i, j), tag)
			if err != nil {
				return nil, err
			}
			push.Tags = append(push.Tags, full)
		}
		all = append(all, build.Output{Registry: push})
	}
	return all, nil
}

var compressions = map[builderv1.Compression]string{
	builderv1.Compression_COMPRESSION_GZIP:         "gzip",
	builderv1.Compression_COMPRESSION_ZSTD:         "zstd",
	builderv1.Compression_COMPRESSION_ESTARGZ:      "estargz",
	builderv1.Compression_COMPRESSION_UNCOMPRESSED: "uncompressed",
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

// cache says what the cache policy means.
func (t Translator) cache(spec *build.Spec, in *builderv1.CachePolicy) error {
	mode := in.GetMode()
	if mode != builderv1.CacheMode_CACHE_MODE_REGISTRY && (in.GetScope() != "" || len(in.GetFallbackScopes()) > 0) {
		return fault.Invalid("spec.cache.scope", in.GetScope(), "is for mode REGISTRY only", "set spec.cache.mode to CACHE_MODE_REGISTRY, or leave the scopes out")
	}
	if mode != builderv1.CacheMode_CACHE_MODE_EXPLICIT && len(in.GetImports())+len(in.GetExports()) > 0 {
		return fault.Invalid("spec.cache.imports", "", "imports and exports are for mode EXPLICIT only", "leave them out")
	}
	switch mode {
	case builderv1.CacheMode_CACHE_MODE_UNSPECIFIED, builderv1.CacheMode_CACHE_MODE_LOCAL:
	case builderv1.CacheMode_CACHE_MODE_REGISTRY:
		repository := t.CacheRepository + "/" + spec.Project
		own := registryEntry(repository, cmp.Or(in.GetScope(), "latest"))
		export := build.CacheEntry{Type: "registry", Attributes: maps.Clone(own.Attributes)}
		export.Attributes["mode"] = "max"
		export.Attributes["image-manifest"] = "true"
		export.Attributes["oci-mediatypes"] = "true"
		spec.Cache.Exports = []build.CacheEntry{export}
		spec.Cache.Imports = append(spec.Cache.Imports, own)
		for _, scope := range in.GetFallbackScopes() {
			spec.Cache.Imports = append(spec.Cache.Imports, registryEntry(repository, scope))
		}
	case builderv1.CacheMode_CACHE_MODE_NONE:
		spec.NoCache = true
	default:
		return unserved("spec.cache.mode", "use CACHE_MODE_LOCAL, CACHE_MODE_REGISTRY or CACHE_MODE_NONE")
	}
	return nil
}

func registryEntry(repository, scope string) build.CacheEntry {
	return build.CacheEntry{Type: "registry", Attributes: map[string]string{"ref": repository + ":" + scope}}
}
