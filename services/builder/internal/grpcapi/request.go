package grpcapi

import (
	"cmp"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/platforms"

	"github.com/kilnbuild/kiln/pkg/fault"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// Translator turns requests, whose bounds are checked already, into specs. What
// the builder's policy grants is not its business.
type Translator struct {
	// CacheRepository is the repository below which each project's cache lives.
	CacheRepository string
	// OtherScopes returns further default scopes of a project's repository, which a
	// build reads after its own. Nil: there are none.
	OtherScopes func(repository, own string) []string
}

// Spec checks what the contract's rules cannot say and returns the domain's form.
func (t Translator) Spec(in *builderv1.BuildSpec) (build.Spec, error) {
	if in == nil {
		return build.Spec{}, fault.Invalid("spec", "", "is missing",
			`say what to build, for example {"spec": {"context": {"inline": {}}, "dockerfile": {"inline": "FROM scratch"}}}`)
	}
	spec := build.Spec{
		Project: cmp.Or(in.GetProject(), build.DefaultProject), Target: in.GetTarget(),
		BuildArgs: in.GetBuildArgs(), Labels: in.GetLabels(), Annotations: in.GetAnnotations(),
		NoCache: in.GetNoCache(), NoCacheStages: in.GetNoCacheStages(), Pull: in.GetPull(),
		ShmSize: in.GetShmSizeBytes(), Definition: in.GetDefinition(),
		Timeout: in.GetTimeout().AsDuration(), Priority: priorities[in.GetPriority()],
		SourceDateEpoch: in.SourceDateEpoch, MaxAttempts: int(in.GetRetry().GetMaxAttempts()),
	}
	for _, part := range []func(*build.Spec, *builderv1.BuildSpec) error{
		definition, sources, buildArgs, stages, platformsOf, secretsOf, sshKeysOf, outputsOf, annotations, attestations,
		t.cache, hosts, network, ulimits, frontend, sourcePolicy,
	} {
		if err := part(&spec, in); err != nil {
			return build.Spec{}, err
		}
	}
	return spec, nil
}

var priorities = map[builderv1.Priority]int{
	builderv1.Priority_PRIORITY_LOW:  -1,
	builderv1.Priority_PRIORITY_HIGH: 1,
}

// dockerfileOf makes sure that a Dockerfile can be there.
func dockerfileOf(in *builderv1.BuildSpec, from build.Context) (build.Dockerfile, error) {
	const field = "spec.dockerfile"
	switch source := in.GetDockerfile().GetSource().(type) {
	case *builderv1.Dockerfile_Inline:
		return build.Dockerfile{Inline: source.Inline}, nil
	case *builderv1.Dockerfile_Path:
		name := source.Path
		if !cleanPath(name) {
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

// cleanPath reports whether name is a relative path that stays where it is, with
// "/" between names.
func cleanPath(name string) bool {
	return name != "." && filepath.IsLocal(name) && path.Clean(name) == name && !strings.ContainsAny(name, "\\\x00")
}

// buildArgs refuses arguments by which BuildKit would be told, past the builder's
// checks, what another field is for.
func buildArgs(spec *build.Spec, _ *builderv1.BuildSpec) error {
	for name, value := range spec.BuildArgs {
		var field string
		switch {
		case name == "SOURCE_DATE_EPOCH":
			field = "spec.source_date_epoch"
		case strings.HasPrefix(name, "BUILDKIT_ATTEST_"):
			field = "spec.attestations"
		default:
			continue
		}
		return fault.Invalid(fmt.Sprintf("spec.build_args[%q]", name), value, "is what "+field+" is for", "set "+field+" instead")
	}
	return nil
}

func platformsOf(spec *build.Spec, in *builderv1.BuildSpec) error {
	for i, name := range in.GetPlatforms() {
		field := fmt.Sprintf("spec.platforms[%d]", i)
		p, err := platforms.Parse(name)
		if err != nil || !strings.Contains(name, "/") {
			return fault.Invalid(field, name, "is not a platform", `write it like "linux/amd64" or "linux/arm64/v8"`)
		}
		text := platforms.Format(platforms.Normalize(p))
		if slices.Contains(spec.Platforms, text) {
			return fault.Invalid(field, name, "is named twice", "name each platform once")
		}
		spec.Platforms = append(spec.Platforms, text)
	}
	return nil
}
