package build

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"

	"github.com/kilnbuild/kiln/services/kiln/internal/progress"
)

var (
	notOfProject = regexp.MustCompile(`[^a-z0-9]+`)
	projectName  = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*$`)
)

// progressModes are the values of --progress.
var progressModes = append(slices.Clone(progress.Modes), "none")

// complete checks the options and fills in what follows from others.
func (o *options) complete(args []string, stdin io.Reader) error {
	o.dockerForm = len(args) == 1
	if len(args) == 3 {
		o.tagFlags = append([]string{args[2]}, o.tagFlags...)
	}
	for _, step := range []func() error{
		o.checkUTF8, o.completeDisplay, o.parseTags, o.parsePlatforms, o.checkCombinations, o.parseAttests,
		func() error { return o.findInputs(args, stdin) },
		func() error { return o.findProject(args[0]) },
		o.parseOutputs, o.parseRest,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// checkUTF8 refuses text that a build request cannot carry, and names it.
func (o *options) checkUTF8() error {
	for flag, values := range map[string][]string{
		"build-arg": o.buildArgs, "label": o.labels, "tag": o.tagFlags, "target": {o.target}, "platform": o.platformFlags, "annotation": o.annotationFlags,
		"output": o.outputFlags, "cache-from": o.cacheFromFlags, "cache-to": o.cacheToFlags, "build-context": o.contextFlags, "secret": o.secrets,
		"ssh": o.ssh, "no-cache-filter": o.noCacheFilter, "attest": o.attestFlags, "add-host": o.steps.addHosts, "allow": o.steps.allow,
		"project": {o.project}, "cache-scope": {o.cacheScope}, "cache-from-scope": o.cacheFromScopes, "cache-repository": {o.cacheRepository},
	} {
		for _, value := range values {
			if !utf8.ValidString(value) {
				return fmt.Errorf("--%s %q is not UTF-8, and build requests carry only that; convert it, for example with iconv -f latin1 -t utf-8", flag, value)
			}
		}
	}
	return nil
}

// completeDisplay settles progress and outcome. --progress quiet is --quiet, as
// docker buildx has it.
func (o *options) completeDisplay() error {
	if o.progress == "auto" {
		o.progress = cmp.Or(os.Getenv("BUILDKIT_PROGRESS"), "auto")
	}
	if err := oneOf("progress", o.progress, progressModes...); err != nil {
		return err
	}
	if o.quiet && o.progress != "auto" && o.progress != "quiet" {
		return fmt.Errorf("--progress %s and --quiet exclude one another; leave one of them out", o.progress)
	}
	o.quiet = o.quiet || o.progress == "quiet"
	if o.quiet || o.progress == "none" {
		o.progress = "quiet" // of BuildKit's display: nothing
	}
	if err := oneOf("format", o.format, "text", "json"); err != nil {
		return err
	}
	if o.check {
		o.callFlag = "check"
	}
	var err error
	o.call, err = parseCall(o.callFlag)
	return err
}

func (o *options) checkCombinations() error {
	switch {
	case o.detach && o.cacheDir != "":
		return errors.New("--cache-dir is a directory of this host, and a build with --detach goes on at the builder: leave one of them out")
	case o.detach && o.load:
		return errors.New("--load needs a connection until the build's end, and --detach leaves; use --push, then `docker pull`")
	case o.noCache && len(o.noCacheFilter) > 0:
		return errors.New("--no-cache runs all stages again, and --no-cache-filter some; leave one of them out")
	}
	for _, policy := range o.policies {
		if off, _ := strconv.ParseBool(strings.TrimPrefix(policy, "disabled=")); !off || !strings.HasPrefix(policy, "disabled=") {
			return fmt.Errorf("--policy %q: docker buildx evaluates these policies itself, and kiln does not; the builder's own policy (policy in builder.yaml) says which sources builds may use", policy)
		}
	}
	return nil
}

// parseTags reads the names of the image.
func (o *options) parseTags() error {
	for _, tag := range o.tagFlags {
		named, err := reference.ParseNormalizedNamed(tag)
		if err != nil {
			return fmt.Errorf("TAG %q is not an image reference: %w; write it like localhost:5000/web:1.2", tag, err)
		}
		if _, ok := named.(reference.Digested); ok {
			return fmt.Errorf("TAG %q names a digest, and the digest is what the build gives; write it like localhost:5000/web:1.2", tag)
		}
		if name := reference.TagNameOnly(named).String(); !slices.Contains(o.tags, name) {
			o.tags = append(o.tags, name)
		}
	}
	return nil
}

// image is the repository of the first tag without its registry. Empty: no tag.
func (o *options) image() string {
	if len(o.tags) == 0 {
		return ""
	}
	named, err := reference.ParseNormalizedNamed(o.tags[0])
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(reference.Path(named), "library/")
}

func (o *options) parsePlatforms() error {
	flags := o.platformFlags
	if value := os.Getenv("DOCKER_DEFAULT_PLATFORM"); len(flags) == 0 && value != "" {
		flags = []string{value}
	}
	for _, flag := range flags {
		for name := range strings.SplitSeq(flag, ",") {
			if name = strings.TrimSpace(name); name == "" {
				continue
			}
			if name == "local" {
				name = platforms.Format(platforms.DefaultSpec())
			}
			parsed, err := platforms.Parse(name)
			if err != nil {
				return fmt.Errorf("--platform is %q; write it like linux/amd64", name)
			}
			if name = platforms.FormatAll(platforms.Normalize(parsed)); !slices.Contains(o.platforms, name) {
				o.platforms = append(o.platforms, name)
			}
		}
	}
	return nil
}

// findProject names the project by the image or, when it has no name, the context.
func (o *options) findProject(context string) error {
	if o.project == "" {
		last := filepath.Base(o.image())
		if o.image() == "" {
			last = filepath.Base(cmp.Or(o.contextDir, strings.TrimSuffix(strings.SplitN(context, "#", 2)[0], ".git")))
		}
		name := strings.Trim(notOfProject.ReplaceAllString(strings.ToLower(last), "-"), "-")
		o.project = cmp.Or(strings.Trim(name[:min(len(name), 63)], "-"), "default")
	}
	if !projectName.MatchString(o.project) || len(o.project) > 63 {
		return fmt.Errorf("--project is %q; use lower-case letters and digits with single . _ or - between them", o.project)
	}
	return nil
}

// parseRest reads the flags that depend on no others.
func (o *options) parseRest() error {
	var err error
	if o.cacheDir != "" {
		if o.cacheDir, err = filepath.Abs(o.cacheDir); err != nil {
			return err
		}
	}
	if o.annotations, err = parseAnnotations(o.annotationFlags); err != nil {
		return err
	}
	if o.contexts, err = parseNamedContexts(o.contextFlags); err != nil {
		return err
	}
	if o.cacheFrom, err = parseCaches("cache-from", o.cacheFromFlags); err != nil {
		return err
	}
	if o.cacheTo, err = parseCaches("cache-to", o.cacheToFlags); err != nil {
		return err
	}
	_, _, allowDelete, err := o.steps.attrs()
	if err != nil {
		return err
	}
	return o.checkLocalDelete(allowDelete)
}

// findServices finds the builder and the repository of the cache in the profile.
func (o *options) findServices() error {
	if err := o.conn.Resolve(); err != nil {
		return err
	}
	if !o.registryCache || o.cacheRepository != "" {
		return nil
	}
	p, err := o.conn.InUse()
	if err != nil {
		return err
	}
	if p.Registry.Address == "" {
		return fmt.Errorf("profile %s (%s) names no registry; add registry.address there, or use --cache-repository", p.Name, p.Path)
	}
	o.cacheRepository = p.Registry.Address + "/cache"
	return nil
}

func directory(what, path string) (string, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%s %q does not exist", what, path)
	case err != nil:
		return "", fmt.Errorf("%s %q cannot be read: %w", what, path, err)
	case !info.IsDir():
		return "", fmt.Errorf("%s %q is not a directory", what, path)
	}
	return filepath.Abs(path)
}

// findDockerfile takes a directory with a Dockerfile, or the path of one.
func (o *options) findDockerfile(path string) error {
	info, err := os.Stat(path)
	if err == nil && !info.IsDir() {
		o.dockerfileDir, o.dockerfileName = filepath.Dir(path), filepath.Base(path)
		return nil
	}
	if o.dockerfileDir, err = directory("DOCKERFILE_DIR", path); err != nil {
		return err
	}
	o.dockerfileName = dockerfileIn(o.dockerfileDir)
	if _, err := os.Stat(filepath.Join(o.dockerfileDir, o.dockerfileName)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("DOCKERFILE_DIR %q has no Dockerfile; name the directory that has it, or the file itself", path)
	}
	return nil
}

// pairs reads NAME=VALUE flags. A NAME alone takes its value from the environment
// when fromEnv is set, and is left out when that has none; else it is empty.
func pairs(flag string, values []string, fromEnv bool) (map[string]string, error) {
	out := make(map[string]string, len(values))
	for _, pair := range values {
		name, value, ok := strings.Cut(pair, "=")
		if name == "" {
			return nil, fmt.Errorf("--%s is %q; write it like NAME=VALUE", flag, pair)
		}
		if !ok && fromEnv {
			if value, ok = os.LookupEnv(name); !ok {
				continue
			}
			if !utf8.ValidString(value) {
				return nil, fmt.Errorf("--%s %s: the value of the variable is not UTF-8: %q; convert it, for example with iconv -f latin1 -t utf-8", flag, name, value)
			}
		}
		out[name] = value
	}
	return out, nil
}
