package buildkit

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/tonistiigi/fsutil"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/hostdir"
	"github.com/kilnbuild/kiln/services/builder/internal/policy"
)

// syntaxArg is the build argument that names the image of a frontend.
const syntaxArg = "BUILDKIT_SYNTAX"

// The frontends of BuildKit.
const (
	dockerfileFrontend = "dockerfile.v0"
	gatewayFrontend    = "gateway.v0"
)

// addFrontend chooses who reads the Dockerfile, and tells it what to build.
func (j *job) addFrontend() error {
	if len(j.spec.Definition) > 0 {
		return nil
	}
	wanted := j.spec.Frontend
	j.opt.Frontend = cmp.Or(wanted.Name, dockerfileFrontend)
	maps.Copy(j.opt.FrontendAttrs, wanted.Attributes)
	maps.Copy(j.opt.FrontendAttrs, frontendAttrs(j.spec))
	image, line, field, err := j.namedFrontend()
	if err != nil || image == "" {
		return err
	}
	return inField(field, j.useFrontend(image, line))
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
	if spec.Network != "" {
		attrs["force-network-mode"] = spec.Network
	}
	if spec.ShmSize > 0 {
		attrs["shm-size"] = strconv.FormatInt(spec.ShmSize, 10)
	}
	var hosts, limits []string
	for _, name := range slices.Sorted(maps.Keys(spec.ExtraHosts)) {
		hosts = append(hosts, name+"="+spec.ExtraHosts[name])
	}
	for _, limit := range spec.Ulimits {
		limits = append(limits, fmt.Sprintf("%s=%d:%d", limit.Name, limit.Soft, limit.Hard))
	}
	if len(hosts) > 0 {
		attrs["add-hosts"] = strings.Join(hosts, ",")
	}
	if len(limits) > 0 {
		attrs["ulimit"] = strings.Join(limits, ",")
	}
	return attrs
}

// noSyntax is the attribute by which the Dockerfile frontend knows that it need not
// look for a syntax line: it has been chosen by one.
const noSyntax = "cmdline"

// namedFrontend returns the image that a request names to read its Dockerfile, with the
// line or argument that names it, and the field of the request: the frontend gateway.v0,
// the argument BUILDKIT_SYNTAX, or the Dockerfile's "# syntax=" line, in BuildKit's
// order. Empty: none is named. The builder does not hold the Dockerfile of a git
// repository or an image, so the daemon's frontend reads that, with its line left out
// of account.
func (j *job) namedFrontend() (image, line, field string, err error) {
	switch j.opt.Frontend {
	case gatewayFrontend:
		return j.opt.FrontendAttrs["source"], j.opt.FrontendAttrs[noSyntax], "spec.frontend", nil
	case dockerfileFrontend:
	default:
		return "", "", "", nil
	}
	if image = FrontendImage(j.opt.Frontend, j.opt.FrontendAttrs); image != "" {
		return image, j.spec.BuildArgs[syntaxArg], fmt.Sprintf("spec.build_args[%q]", syntaxArg), nil
	}
	j.opt.FrontendAttrs[noSyntax] = ""
	text, err := j.dockerfile()
	if err != nil || text == nil {
		return "", "", "", err
	}
	image, line, _, _ = parser.DetectSyntax(text)
	return image, line, "spec.dockerfile", nil
}

// useFrontend has an image read the Dockerfile. A release of docker/dockerfile that the
// operator does not name means the daemon's own frontend, which is the same program.
func (j *job) useFrontend(image, line string) error {
	attrs := map[string]string{"source": image}
	if err := j.daemon.opts.Policy.Frontend(gatewayFrontend, attrs); err != nil {
		return err
	}
	if policy.Official(image) && !j.daemon.opts.Policy.Granted(image) {
		j.opt.Frontend, j.opt.FrontendAttrs[noSyntax] = dockerfileFrontend, ""
		delete(j.opt.FrontendAttrs, "source")
		return nil
	}
	j.opt.Frontend = gatewayFrontend
	j.opt.FrontendAttrs["source"], j.opt.FrontendAttrs[noSyntax] = image, line
	return nil
}

// maxDockerfile is how much of a Dockerfile is looked at, in bytes; BuildKit reads no
// larger one.
const maxDockerfile = 2 << 20

// dockerfile returns the Dockerfile when the builder holds it, and else nil.
func (j *job) dockerfile() ([]byte, error) {
	if j.spec.Dockerfile.Inline != "" {
		return []byte(j.spec.Dockerfile.Inline), nil
	}
	files := j.opt.LocalMounts[dockerfileName]
	if files == nil {
		return nil, nil
	}
	text, err := readFile(files, j.spec.Dockerfile.Path)
	if errors.Is(err, fs.ErrNotExist) && path.Base(j.spec.Dockerfile.Path) == "Dockerfile" {
		// The other spelling that BuildKit looks for.
		text, err = readFile(files, path.Join(path.Dir(j.spec.Dockerfile.Path), "dockerfile"))
	}
	if errors.Is(err, hostdir.ErrSpecial) {
		return nil, fault.Invalid("spec.dockerfile.path", j.spec.Dockerfile.Path, err.Error(), "name a regular file")
	}
	if err != nil {
		return nil, nil //nolint:nilerr // the build fails for it, and says where
	}
	return text, nil
}

func readFile(files fsutil.FS, name string) ([]byte, error) {
	f, err := files.Open(name)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxDockerfile))
	return text, errors.Join(err, f.Close())
}

// addAttestations asks for statements about the image.
func (j *job) addAttestations() error {
	wanted := j.spec.Attestations
	if wanted.Provenance != "" {
		j.opt.FrontendAttrs["attest:provenance"] = "mode=" + wanted.Provenance
	}
	if !wanted.SBOM {
		return nil
	}
	j.opt.FrontendAttrs["attest:sbom"] = ""
	if generator := cmp.Or(wanted.SBOMGenerator, j.daemon.opts.Policy.DefaultSBOMGenerator()); generator != "" {
		j.opt.FrontendAttrs["attest:sbom"] = "generator=" + generator
	}
	return nil
}

// inField gives an error of a part the field of the request that it is about.
func inField(field string, err error) error {
	if known, ok := errors.AsType[*fault.Error](err); ok {
		copied := *known
		copied.Field = field
		return &copied
	}
	return err
}
