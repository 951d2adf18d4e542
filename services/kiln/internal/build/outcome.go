package build

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"

	"github.com/kilnbuild/kiln/services/kiln/internal/wholefile"
)

// outcome is what `--format json` prints. The names are part of the interface.
type outcome struct {
	BuildID     string  `json:"build_id"`
	State       string  `json:"state"`
	Digest      string  `json:"digest,omitempty"`
	Tag         string  `json:"tag"`
	Pushed      bool    `json:"pushed"`
	TotalSteps  int32   `json:"total_steps"`
	CachedSteps int32   `json:"cached_steps"`
	DurationS   float64 `json:"duration_s"`
	TraceID     string  `json:"trace_id,omitempty"`
	Error       string  `json:"error,omitempty"`
}

// pushes reports whether an output goes to a registry.
func (o *options) pushes() bool {
	for _, entry := range o.outputs {
		if push, _ := strconv.ParseBool(entry.Attrs["push"]); push && entry.Type == client.ExporterImage {
			return true
		}
	}
	return false
}

// loads reports whether an output goes to the Docker Engine.
func (o *options) loads() bool {
	for _, entry := range o.outputs {
		if entry.Type == client.ExporterDocker && entry.Attrs["dest"] == "" {
			return true
		}
	}
	return false
}

// firstTag is the image's name in the outcome. Empty: it has none.
func (o *options) firstTag() string {
	if len(o.tags) == 0 {
		return ""
	}
	return o.tags[0]
}

// print says what the build came to: on stdout, unless an output goes there.
func (o *options) print(stdout, stderr io.Writer, out outcome, response map[string]string) error {
	if o.stdoutTaken {
		stdout = stderr
	}
	if o.format == "json" {
		return json.NewEncoder(stdout).Encode(out)
	}
	if out.State != "SUCCEEDED" {
		return nil
	}
	if o.quiet {
		_, err := fmt.Fprintln(stdout, imageID(response))
		return err
	}
	verb := "built"
	switch {
	case o.pushes():
		verb = "pushed"
	case o.loads():
		verb = "loaded"
	}
	name := cmp.Or(out.Tag, o.project)
	if out.Digest != "" {
		name += "@" + out.Digest
	}
	_, err := fmt.Fprintf(stdout, "%s %s in %.2fs (%d of %d steps cached)\n",
		verb, name, out.DurationS, out.CachedSteps, out.TotalSteps)
	if err == nil && len(o.outputs) == 0 {
		_, err = fmt.Fprintln(stderr, "note: the result stays in the build cache; use --push, --load or --output to have it")
	}
	return err
}

// imageID is the digest of the image's configuration or, for several images, of
// their index.
func imageID(response map[string]string) string {
	return cmp.Or(response[exptypes.ExporterImageConfigDigestKey], response[exptypes.ExporterImageDigestKey])
}

// writeFiles writes --iidfile and --metadata-file.
func (s *solving) writeFiles() error {
	if s.iidFile != "" {
		if err := os.WriteFile(s.iidFile, []byte(imageID(s.response)), 0o644); err != nil { //nolint:gosec // As docker buildx.
			return fmt.Errorf("the build succeeded, and --iidfile cannot be written: %w", err)
		}
	}
	if s.metadataFile == "" {
		return nil
	}
	all := map[string]any{}
	for key, value := range s.response {
		all[key] = decoded(value)
	}
	all["buildx.build.ref"] = "kiln/" + s.conn.Address + "/" + s.ref
	if on, _ := strconv.ParseBool(os.Getenv("BUILDX_METADATA_WARNINGS")); on && len(s.warnings) > 0 {
		all["buildx.build.warnings"] = s.warnings
	}
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	path, err := filepath.Abs(s.metadataFile)
	if err == nil {
		err = wholefile.Replace(path, text, 0o644)
	}
	if err != nil {
		return fmt.Errorf("the build succeeded, and --metadata-file cannot be written: %w", err)
	}
	return nil
}

// decoded returns JSON that an exporter has packed in base64 as it is, and all else
// as text.
func decoded(value string) any {
	text, err := base64.StdEncoding.DecodeString(value)
	if err != nil {
		return value
	}
	var object map[string]any
	if json.Unmarshal(text, &object) == nil && len(object) > 0 {
		return json.RawMessage(text)
	}
	var list []map[string]any
	if json.Unmarshal(text, &list) == nil && len(list) > 0 {
		return json.RawMessage(text)
	}
	return value
}

// dockerfileShown is the name of the Dockerfile that a user knows it by.
func (o *options) dockerfileShown() string {
	switch {
	case o.file == "-":
		return "stdin"
	case o.file != "":
		return o.file
	case o.dockerfileDir != "":
		shown := filepath.Join(o.dockerfileDir, o.dockerfileName)
		if wd, err := os.Getwd(); err == nil {
			if below, err := filepath.Rel(wd, shown); err == nil && filepath.IsLocal(below) {
				return below
			}
		}
		return shown
	default:
		return "Dockerfile"
	}
}
