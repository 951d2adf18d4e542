package build

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"

	"github.com/kilnbuild/kiln/services/kiln/internal/progress"
)

var (
	notOfProject = regexp.MustCompile(`[^a-z0-9]+`)
	projectName  = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*$`)
)

// complete checks the options and fills in what follows from others.
func (o *options) complete(args []string) error {
	if err := oneOf("progress", o.progress, progress.Modes...); err != nil {
		return err
	}
	if err := oneOf("format", o.format, "text", "json"); err != nil {
		return err
	}
	if o.push && o.load {
		return errors.New("--push and --load exclude one another; push, then `docker pull`")
	}
	if o.detach && o.cacheDir != "" {
		return errors.New("--cache-dir is a directory of this host, and a build with --detach goes on at the builder: leave one of them out")
	}
	var err error
	if o.cacheDir != "" {
		if o.cacheDir, err = filepath.Abs(o.cacheDir); err != nil {
			return err
		}
	}
	if o.contextDir, err = directory("CONTEXT_DIR", args[0]); err != nil {
		return err
	}
	if err := o.findDockerfile(args[1]); err != nil {
		return err
	}
	named, err := reference.ParseNormalizedNamed(args[2])
	if err != nil {
		return fmt.Errorf("TAG %q is not an image reference: %w; write it like localhost:5000/web:1.2", args[2], err)
	}
	if _, ok := named.(reference.Digested); ok {
		return fmt.Errorf("TAG %q names a digest, and the digest is what the build gives; write it like localhost:5000/web:1.2", args[2])
	}
	o.tag = reference.TagNameOnly(named).String()
	if o.project == "" {
		last := filepath.Base(reference.Path(named))
		o.project = strings.Trim(notOfProject.ReplaceAllString(last, "-"), "-")
		o.project = o.project[:min(len(o.project), 63)]
	}
	if !projectName.MatchString(o.project) || len(o.project) > 63 {
		return fmt.Errorf("--project is %q; use lower-case letters and digits with single . _ or - between them", o.project)
	}
	for _, name := range o.platforms {
		if _, err := platforms.Parse(name); err != nil {
			return fmt.Errorf("--platform is %q; write it like linux/amd64", name)
		}
	}
	return nil
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
	o.dockerfileName = "Dockerfile"
	if _, err := os.Stat(filepath.Join(o.dockerfileDir, o.dockerfileName)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("DOCKERFILE_DIR %q has no Dockerfile; name the directory that has it, or the file itself", path)
	}
	return nil
}

// pairs reads NAME=VALUE flags. A NAME alone takes its value from the
// environment when fromEnv is set, and is left out when that has none.
func pairs(flag string, values []string, fromEnv bool) (map[string]string, error) {
	out := make(map[string]string, len(values))
	for _, pair := range values {
		name, value, ok := strings.Cut(pair, "=")
		if name == "" || (!ok && !fromEnv) {
			return nil, fmt.Errorf("--%s is %q; write it like NAME=VALUE", flag, pair)
		}
		if !ok {
			if value, ok = os.LookupEnv(name); !ok {
				continue
			}
		}
		out[name] = value
	}
	return out, nil
}
