package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session/filesync"
	"github.com/tonistiigi/go-csvvalue"

	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

// csvFlag reads a flag of the form KEY=VALUE[,KEY=VALUE], in which quotes are those
// of CSV. Keys are in lower case.
func csvFlag(flag, text string) (map[string]string, error) {
	fields, err := csvvalue.Fields(text, nil)
	if err != nil {
		return nil, fmt.Errorf("--%s %q: %w", flag, text, err)
	}
	all := make(map[string]string, len(fields))
	for _, field := range fields {
		key, value, ok := strings.Cut(field, "=")
		if !ok {
			return nil, fmt.Errorf("--%s %q: %q is not KEY=VALUE", flag, text, field)
		}
		all[strings.ToLower(strings.TrimSpace(key))] = value
	}
	return all, nil
}

// parseOutput reads one --output: DIRECTORY, "-" for a tar on standard output, or
// type=TYPE[,dest=PATH][,KEY=VALUE].
func parseOutput(text string) (client.ExportEntry, error) {
	if text == "-" {
		return client.ExportEntry{Type: client.ExporterTar, Attrs: map[string]string{"dest": "-"}}, nil
	}
	fields, err := csvvalue.Fields(text, nil)
	if err == nil && len(fields) == 1 && fields[0] == text && !strings.HasPrefix(text, "type=") {
		return client.ExportEntry{Type: client.ExporterLocal, Attrs: map[string]string{"dest": text}}, nil
	}
	attrs, err := csvFlag("output", text)
	if err != nil {
		return client.ExportEntry{}, err
	}
	entry := client.ExportEntry{Type: attrs["type"], Attrs: attrs}
	delete(attrs, "type")
	switch entry.Type {
	case "":
		return entry, fmt.Errorf("--output %q has no type; write it like type=local,dest=DIRECTORY", text)
	case "registry":
		entry.Type, attrs["push"] = client.ExporterImage, "true"
		setDefault(attrs, "unpack", "false")
	case client.ExporterLocal, client.ExporterTar, client.ExporterOCI, client.ExporterDocker, client.ExporterImage, "cacheonly":
	default:
		return entry, fmt.Errorf("--output %q: the type %q is not known; use local, tar, oci, docker, image, registry or cacheonly", text, entry.Type)
	}
	return entry, nil
}

func setDefault(attrs map[string]string, key, value string) {
	if _, set := attrs[key]; !set {
		attrs[key] = value
	}
}

// parseOutputs reads --output, --push and --load. Destinations are not opened yet.
func (o *options) parseOutputs() error {
	for _, text := range o.outputFlags {
		if text == "" {
			continue
		}
		entry, err := parseOutput(text)
		if err != nil {
			return err
		}
		o.outputs = append(o.outputs, entry)
	}
	if o.push {
		o.addPush()
	}
	if o.load {
		o.addLoad()
	}
	return o.checkOutputs()
}

// addPush makes --output type=image push or, when there is none, adds one.
func (o *options) addPush() {
	pushes := false
	for _, entry := range o.outputs {
		if entry.Type == client.ExporterImage {
			entry.Attrs["push"] = "true"
			setDefault(entry.Attrs, "unpack", "false")
			pushes = true
		}
	}
	if !pushes {
		o.outputs = append(o.outputs, client.ExportEntry{
			Type: client.ExporterImage, Attrs: map[string]string{"push": "true", "unpack": "false"},
		})
	}
}

func (o *options) addLoad() {
	for _, entry := range o.outputs {
		if entry.Type == client.ExporterDocker && entry.Attrs["dest"] == "" {
			return
		}
	}
	o.outputs = append(o.outputs, client.ExportEntry{Type: client.ExporterDocker, Attrs: map[string]string{}})
}

// checkOutputs checks what can be said before the build, and names the images.
func (o *options) checkOutputs() error {
	toStdout := 0
	for _, entry := range o.outputs {
		push, _ := strconv.ParseBool(entry.Attrs["push"])
		switch entry.Type {
		case client.ExporterImage, client.ExporterOCI, client.ExporterDocker:
			if len(o.tags) > 0 {
				entry.Attrs["name"] = strings.Join(o.tags, ",")
			}
			if push && entry.Attrs["name"] == "" {
				return errors.New("a push needs the name of the image; add -t REGISTRY/NAME:TAG")
			}
		case client.ExporterLocal, client.ExporterTar:
			if o.iidFile != "" {
				return fmt.Errorf("--iidfile needs an image, and --output type=%s makes none; leave one of them out", entry.Type)
			}
		}
		if entry.Type == client.ExporterDocker && o.exportsIndex() {
			return errors.New("the Docker Engine takes one platform without attestations by --load and type=docker; " +
				"use --push, or --output type=oci,dest=FILE")
		}
		if writesStdout(entry) {
			toStdout++
		}
	}
	o.stdoutTaken = toStdout > 0
	if toStdout > 1 {
		return errors.New("more than one --output goes to standard output; give the others dest=FILE")
	}
	return nil
}

// exportsIndex reports whether the result is several images, or one with attestations.
func (o *options) exportsIndex() bool {
	for _, value := range o.attests {
		if value != "" {
			return true
		}
	}
	return len(o.platforms) > 1
}

// destination says what an output writes to: a directory, a file, or neither.
func destination(entry client.ExportEntry) (dir, file bool) {
	switch entry.Type {
	case client.ExporterLocal:
		return true, false
	case client.ExporterTar:
		return false, true
	case client.ExporterOCI, client.ExporterDocker:
		tar, err := strconv.ParseBool(entry.Attrs["tar"])
		return err == nil && !tar, err != nil || tar
	default:
		return false, false
	}
}

// writesStdout reports whether an output goes to standard output.
func writesStdout(entry client.ExportEntry) bool {
	_, file := destination(entry)
	dest := entry.Attrs["dest"]
	return file && (dest == "-" || dest == "" && entry.Type != client.ExporterDocker)
}

// exports opens the destinations of the outputs.
func (o *options) exports(ctx context.Context, stdout, stderr io.Writer) ([]client.ExportEntry, error) {
	var all []client.ExportEntry
	for _, entry := range o.outputs {
		if entry.Type == "cacheonly" {
			continue
		}
		opened := client.ExportEntry{Type: entry.Type, Attrs: map[string]string{}}
		for key, value := range entry.Attrs {
			if key != "dest" {
				opened.Attrs[key] = value
			}
		}
		for key, value := range o.annotations {
			opened.Attrs[key] = value
		}
		if err := o.open(ctx, &opened, entry, stdout, stderr); err != nil {
			return nil, fmt.Errorf("--output type=%s: %w", entry.Type, err)
		}
		all = append(all, opened)
	}
	return all, nil
}

// open sets where an output is written to.
func (o *options) open(ctx context.Context, opened *client.ExportEntry, entry client.ExportEntry, stdout, stderr io.Writer) (err error) {
	dest := entry.Attrs["dest"]
	dir, file := destination(entry)
	switch {
	case dir && (dest == "" || dest == "-"):
		return errors.New("it writes a directory; add dest=DIRECTORY")
	case dir:
		if info, err := os.Stat(dest); err == nil && !info.IsDir() {
			return fmt.Errorf("%s is a file; name a directory with dest=", dest)
		}
		opened.OutputDir = dest
	case file && dest == "" && !writesStdout(entry):
		opened.Output, err = dockerLoad(ctx, entry.Attrs["context"], stderr)
		delete(opened.Attrs, "context")
	case writesStdout(entry):
		if table.TerminalOf(stdout).Width > 0 {
			return errors.New("it would write an archive to the terminal; add dest=FILE, or redirect standard output")
		}
		opened.Output = func(map[string]string) (io.WriteCloser, error) { return nopCloser{stdout}, nil }
	case file:
		if info, err := os.Stat(dest); err == nil && info.IsDir() {
			return fmt.Errorf("%s is a directory; name a file with dest=", dest)
		}
		opened.Output = writeFile(dest)
	case dest != "":
		return errors.New("it has no dest; use type=oci or type=docker for a file")
	}
	return err
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// writeFile writes to a file, which is made with the first byte: a build that fails
// leaves an earlier one as it was.
func writeFile(path string) filesync.FileOutputFunc {
	return func(map[string]string) (io.WriteCloser, error) { return &lazyFile{path: path}, nil }
}

type lazyFile struct {
	path string
	file *os.File
}

func (f *lazyFile) Write(p []byte) (int, error) {
	if f.file == nil {
		if err := os.MkdirAll(filepath.Dir(f.path), 0o755); err != nil { //nolint:gosec // As docker buildx makes it.
			return 0, err
		}
		file, err := os.Create(f.path)
		if err != nil {
			return 0, err
		}
		f.file = file
	}
	return f.file.Write(p)
}

func (f *lazyFile) Close() error {
	if f.file == nil {
		return nil
	}
	return f.file.Close()
}

// localDelete is the right to have --output type=local,mode=delete remove files
// outside the working directory.
const localDelete = "buildx.local.delete"

// checkLocalDelete refuses type=local,mode=delete for a directory that is not below
// the working directory, unless --allow buildx.local.delete is given.
func (o *options) checkLocalDelete(allowed bool) error {
	for _, entry := range o.outputs {
		if entry.Type != client.ExporterLocal {
			continue
		}
		mode, err := client.ParseLocalExporterMode(entry.Attrs["mode"])
		if err != nil {
			return fmt.Errorf("--output type=local: %w", err)
		}
		if mode != client.LocalExporterModeDelete || allowed {
			continue
		}
		below, err := belowWorkingDirectory(entry.Attrs["dest"])
		if err != nil {
			return err
		}
		if !below {
			return fmt.Errorf("--output type=local,mode=delete removes what else is in %s, which is not below the working directory; add --allow %s",
				entry.Attrs["dest"], localDelete)
		}
	}
	return nil
}

func belowWorkingDirectory(path string) (bool, error) {
	wd, err := os.Getwd()
	if err == nil {
		wd, err = filepath.EvalSymlinks(wd)
	}
	if err != nil {
		return false, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return false, err
	}
	rest := ""
	for {
		real, err := filepath.EvalSymlinks(path)
		if err == nil {
			path = filepath.Join(real, rest)
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || path == "/" {
			return false, err
		}
		path, rest = filepath.Dir(path), filepath.Join(filepath.Base(path), rest)
	}
	inside, err := filepath.Rel(wd, path)
	return err == nil && inside != "." && filepath.IsLocal(inside), nil
}
