package build

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	"github.com/moby/buildkit/session/upload/uploadprovider"
	"github.com/moby/buildkit/util/archiveutil"
	"github.com/moby/buildkit/util/gitutil"
)

// findInputs reads the positional arguments: CONTEXT, or the older form
// CONTEXT_DIR DOCKERFILE_DIR TAG.
func (o *options) findInputs(args []string, stdin io.Reader) error {
	context := args[0]
	if len(args) == 3 {
		if o.file != "" {
			return fmt.Errorf("--file %q and DOCKERFILE_DIR %q name two Dockerfiles; use either `kiln build -t TAG -f FILE CONTEXT` or `kiln build CONTEXT_DIR DOCKERFILE_DIR TAG`",
				o.file, args[1])
		}
		var err error
		if o.contextDir, err = directory("CONTEXT_DIR", context); err != nil {
			return err
		}
		return o.findDockerfile(args[1])
	}
	switch {
	case isURL(o.file):
		return fmt.Errorf("--file %s is a URL; download it, and name the file or give it on standard input with --file -", o.file)
	case context == "-":
		return o.findOnStdin(stdin)
	case isRemote(context):
		return o.findRemote(context, stdin)
	}
	var err error
	if o.contextDir, err = directory("CONTEXT", context); err != nil {
		return err
	}
	if o.file == "-" {
		return o.readDockerfile(stdin)
	}
	if o.file == "" {
		o.dockerfileDir, o.dockerfileName = o.contextDir, dockerfileIn(o.contextDir)
		if _, err := os.Stat(filepath.Join(o.dockerfileDir, o.dockerfileName)); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("CONTEXT %q has no Dockerfile; name the file with --file", context)
		}
		return nil
	}
	return o.nameDockerfile(o.file)
}

// nameDockerfile takes the Dockerfile at a path.
func (o *options) nameDockerfile(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("--file %q does not exist; its path is relative to the working directory, not to the context", path)
	case err != nil:
		return fmt.Errorf("--file: %w", err)
	case info.IsDir():
		return fmt.Errorf("--file %q is a directory; name the Dockerfile itself", path)
	}
	if path, err = filepath.Abs(path); err != nil {
		return err
	}
	o.dockerfileDir, o.dockerfileName = filepath.Dir(path), filepath.Base(path)
	return nil
}

// dockerfileIn is the usual name of the Dockerfile in a directory: "Dockerfile", or
// "dockerfile" when only that is there.
func dockerfileIn(dir string) string {
	names, err := os.ReadDir(dir)
	if err != nil {
		return "Dockerfile"
	}
	lower := false
	for _, entry := range names {
		switch entry.Name() {
		case "Dockerfile":
			return "Dockerfile"
		case "dockerfile":
			lower = true
		}
	}
	if lower {
		return "dockerfile"
	}
	return "Dockerfile"
}

func isURL(text string) bool {
	return strings.HasPrefix(text, "http://") || strings.HasPrefix(text, "https://")
}

// isRemote reports whether a context is a git repository or a URL.
func isRemote(text string) bool {
	if isURL(text) {
		return true
	}
	_, ok, _ := dfgitutil.ParseGitRef(text) // An error is of one that is no such reference.
	return ok
}

// maxDockerfileBytes bounds a Dockerfile on standard input.
const maxDockerfileBytes = 16 << 20

// findOnStdin takes what standard input has: a tar of the context, compressed or
// not, or a Dockerfile for an empty context.
func (o *options) findOnStdin(stdin io.Reader) error {
	if o.file == "-" {
		return errors.New("standard input cannot be both the context and the Dockerfile; leave out one of the -")
	}
	const archiveHeader = 1024
	buffered := bufio.NewReaderSize(stdin, archiveHeader)
	header, err := buffered.Peek(archiveHeader)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading the context from standard input: %w", err)
	}
	if archiveutil.IsArchive(header) {
		o.contextTar = buffered
		o.dockerfileName = o.file
		return nil
	}
	if len(header) == 0 {
		return errors.New("standard input is empty; pipe a tar of the context or a Dockerfile into it")
	}
	if o.file != "" {
		return fmt.Errorf("standard input is no tar, so that it would be the Dockerfile, and --file %q names another; leave out one of them", o.file)
	}
	if o.contextDir, err = o.scratchDir(); err != nil {
		return err
	}
	return o.readDockerfile(buffered)
}

// readDockerfile takes standard input for the Dockerfile.
func (o *options) readDockerfile(stdin io.Reader) error {
	text, err := io.ReadAll(io.LimitReader(stdin, maxDockerfileBytes+1))
	if err != nil {
		return fmt.Errorf("reading the Dockerfile from standard input: %w", err)
	}
	if len(text) > maxDockerfileBytes {
		return errors.New("the Dockerfile on standard input is larger than 16 MiB")
	}
	if o.dockerfileDir, err = o.scratchDir(); err != nil {
		return err
	}
	o.dockerfileName, o.ownDockerfile = "Dockerfile", true
	return os.WriteFile(filepath.Join(o.dockerfileDir, o.dockerfileName), text, 0o600)
}

// scratchDir makes a directory that the end of the command removes.
func (o *options) scratchDir() (string, error) {
	dir, err := os.MkdirTemp("", "kiln-build-")
	if err == nil {
		o.scratch = append(o.scratch, dir)
	}
	return dir, err
}

// cleanUp removes what the command has made for itself.
func (o *options) cleanUp() {
	for _, dir := range o.scratch {
		_ = os.RemoveAll(dir) // It is in the directory for temporary files.
	}
}

// findRemote takes a git repository or a URL for the context. A relative --file is
// in it, an absolute one is here.
func (o *options) findRemote(context string, stdin io.Reader) error {
	o.contextURL = context
	switch {
	case o.file == "-":
		return o.readDockerfile(stdin)
	case filepath.IsAbs(o.file):
		o.ownDockerfile = true
		return o.nameDockerfile(o.file)
	}
	o.dockerfileName = o.file
	return nil
}

// setInputs says in BuildKit's terms what the build reads.
func (o *options) setInputs(opt *client.SolveOpt) error {
	mount := func(name, dir string) error {
		files, err := newStampedFS(dir)
		if err != nil {
			return fmt.Errorf("reading %s: %w", dir, err)
		}
		opt.LocalMounts[name] = files
		return nil
	}
	attrs := opt.FrontendAttrs
	switch {
	case o.contextTar != nil:
		uploads := uploadprovider.New()
		attrs["context"] = uploads.Add(io.NopCloser(o.contextTar))
		opt.Session = append(opt.Session, uploads)
	case o.contextURL != "":
		attrs["context"] = o.contextURL
		addCaps(attrs, o.contextURL, "moby.buildkit.frontend.gitquerystring")
	default:
		if err := mount("context", o.contextDir); err != nil {
			return err
		}
	}
	if o.dockerfileDir != "" {
		if err := mount("dockerfile", o.dockerfileDir); err != nil {
			return err
		}
	}
	if o.ownDockerfile {
		attrs["dockerfilekey"] = "dockerfile"
	}
	attrs["filename"] = "Dockerfile"
	if o.dockerfileName != "" {
		attrs["filename"] = o.dockerfileName
	}
	return o.setNamedContexts(opt, mount)
}

// addCaps asks the frontend for what a git URL with a query needs of it.
func addCaps(attrs map[string]string, url string, caps ...string) {
	if ref, err := gitutil.ParseURL(url); err != nil || len(ref.Query) == 0 {
		return
	}
	addFrontendCaps(attrs, caps...)
}

func addFrontendCaps(attrs map[string]string, caps ...string) {
	if have := attrs["frontend.caps"]; have != "" {
		caps = append([]string{have}, caps...)
	}
	attrs["frontend.caps"] = strings.Join(caps, ",")
}

// isGitSSH reports whether a context is a git repository by SSH.
func isGitSSH(url string) bool {
	parsed, err := gitutil.ParseURL(url)
	return err == nil && parsed.Scheme == gitutil.SSHProtocol
}
