package up

import (
	"bytes"
	"crypto/rand"
	_ "embed" // The templates.
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"text/template"
)

//go:embed buildkitd.toml.tmpl
var buildkitdText string

//go:embed registry.yml.tmpl
var registryText string

// buildkitdFile is what buildkitd's configuration depends on.
type buildkitdFile struct {
	Root, Address, TraceSocket string
	Registries                 []string // host:port, spoken to over HTTP
	Steps                      *stepsFile
}

// stepsFile is the part about an isolated network of steps. Nil: the host's.
type stepsFile struct {
	CNIConfig, CNIPlugins string
	PoolSize              int
	Nameservers           []netip.Addr
}

// registryFile is what the registry's configuration depends on.
type registryFile struct {
	Root, Listen string
	// Events is where notifications go, and Secret what they show there.
	Events, Secret string
}

// render fills a template. Strings are quoted as JSON does, which is right in
// TOML and in YAML.
func render(text string, values any) ([]byte, error) {
	quote := func(s string) (string, error) {
		quoted, err := json.Marshal(s)
		return string(quoted), err
	}
	parsed, err := template.New("").Funcs(template.FuncMap{"quote": quote}).Parse(text)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = parsed.Execute(&out, values)
	return out.Bytes(), err
}

// writeConfigs writes the configuration files of the children.
func (r *runner) writeConfigs() error {
	daemon, err := render(buildkitdText, buildkitdFile{
		Root:        r.paths.buildkit(),
		Address:     "unix://" + r.paths.buildkitSocket(),
		TraceSocket: r.paths.traceSocket(),
		Registries:  r.addrs.registryNames(),
		Steps:       r.stepsFile(),
	})
	if err != nil {
		return err
	}
	secret, err := eventsSecret(r.paths.eventsSecret())
	if err != nil {
		return err
	}
	registry, err := render(registryText, registryFile{
		Root: r.paths.registry(), Listen: r.addrs.registry, Events: "http://" + r.addrs.janitorHTTP + "/registry-events", Secret: secret,
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(r.paths.config("buildkitd.toml"), daemon, 0o600); err != nil {
		return err
	}
	return os.WriteFile(r.paths.config("registry.yml"), registry, 0o600)
}

// eventsSecret is what the registry and the janitor share, made at the first start.
func eventsSecret(path string) (string, error) {
	raw, err := os.ReadFile(path)
	if err == nil && len(raw) > 0 {
		return strings.TrimSpace(string(raw)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	secret := rand.Text()
	return secret, os.WriteFile(path, []byte(secret+"\n"), 0o600)
}
