package debug

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"github.com/kilnbuild/kiln/services/kiln/internal/wholefile"
)

// secretive are lines that may hold a secret: these are left out.
var secretive = regexp.MustCompile(`(?i)(password|passwd|secret|token|authorization|bearer|api[_-]?key|private key|credential|://[^/\s:@]+:[^@\s]+@|"auth"|kiln_[A-Za-z0-9_-]{20,})`)

// pemBlock is a key, whose lines say nothing of themselves.
var pemBlock = regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\z)`)

// redact leaves out what may hold a secret.
func redact(text []byte) []byte {
	text = pemBlock.ReplaceAll(text, []byte("(a key was left out)"))
	var out bytes.Buffer
	for line := range bytes.Lines(text) {
		if secretive.Match(line) {
			out.WriteString("(a line was left out)\n")
			continue
		}
		out.Write(line)
	}
	return out.Bytes()
}

// configFiles are those that a bundle takes along. Those that hold secrets are not among them.
var configFiles = []string{
	"/etc/kiln/builder.yaml", "/etc/kiln/cachemanager.yaml", "/etc/kiln/janitor.yaml", "/etc/kiln/access.yaml", "/etc/kiln/registry.yml", "/etc/buildkit/buildkitd.toml",
}

// maxPart bounds what a bundle takes of one file or command: its end.
const maxPart = 4 << 20

// writeBundle writes an archive for whoever helps: the report, versions, configurations and the
// last lines of the logs, without secrets.
func (o *options) writeBundle(ctx context.Context, file string, report Report) error {
	var out bytes.Buffer
	packed := gzip.NewWriter(&out)
	archive := tar.NewWriter(packed)
	add := func(name string, text []byte) error {
		header := &tar.Header{Name: "kiln-debug/" + name, Mode: 0o644, Size: int64(len(text)), ModTime: report.Time}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		_, err := archive.Write(text)
		return err
	}
	text, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	errs := []error{add("report.json", redact(text))}
	for _, path := range append(configFiles, o.daemonConfig, "/proc/version", "/proc/mounts", "/proc/meminfo", "/etc/os-release") {
		if text, err := tailOf(path); err == nil {
			errs = append(errs, add("files"+path, redact(text)))
		}
	}
	for _, address := range o.metrics {
		if text, err := get(ctx, "http://"+address+"/metrics"); err == nil {
			errs = append(errs, add("metrics/"+address+".txt", redact(text)))
		}
	}
	for name, command := range map[string][]string{
		"journal.txt": {"journalctl", "--no-pager", "--lines", "2000", "--unit", "buildkit", "--unit", "kiln-*"},
		"units.txt":   {"systemctl", "--no-pager", "--full", "status", "buildkit", "kiln-*"},
		"df.txt":      {"df", "--human-readable", "--inodes", "--output"},
	} {
		bounded, cancel := context.WithTimeout(ctx, checkTimeout)
		text, _ := exec.CommandContext(bounded, command[0], command[1:]...).CombinedOutput() // what it could say
		cancel()
		if len(text) > 0 {
			errs = append(errs, add("commands/"+name, redact(text[max(0, len(text)-maxPart):])))
		}
	}
	logs, _ := filepath.Glob(filepath.Join(o.dataDir, "logs", "*.log"))
	for _, path := range logs {
		if text, err := tailOf(path); err == nil {
			errs = append(errs, add("logs/"+filepath.Base(path), redact(text)))
		}
	}
	if err := errors.Join(append(errs, archive.Close(), packed.Close())...); err != nil {
		return fmt.Errorf("the bundle cannot be made: %w", err)
	}
	return wholefile.Replace(file, out.Bytes(), 0o600)
}

// tailOf is the end of a file.
func tailOf(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // It was only read.
	if info, err := f.Stat(); err == nil && info.Size() > maxPart {
		if _, err := f.Seek(-maxPart, io.SeekEnd); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(io.LimitReader(f, maxPart))
}

// bundleName is the usual name of a bundle.
func bundleName(at time.Time) string {
	return "kiln-debug-" + at.UTC().Format("20060102-150405") + ".tar.gz"
}
