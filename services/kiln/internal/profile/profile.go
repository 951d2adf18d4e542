// Package profile says where the parts of one Kiln installation are, so that every
// command finds the builder, the cache manager, the janitor, the registry and the
// credentials together. `kiln up` writes a profile; people and administrators may
// write their own.
package profile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Profile is the content of a profile file. Empty fields are unknown.
type Profile struct {
	// Name is the name that --profile takes. It is not part of the file.
	Name string `yaml:"-"`
	// Path is the file that the profile was read from. Empty: built-in defaults.
	Path string `yaml:"-"`

	Builder      Service  `yaml:"builder,omitempty"`
	CacheManager Service  `yaml:"cache_manager,omitempty"`
	Janitor      Service  `yaml:"janitor,omitempty"`
	Registry     Registry `yaml:"registry,omitempty"`
	Daemon       Daemon   `yaml:"daemon,omitempty"`
	// DataDir is the data directory of `kiln up`.
	DataDir string `yaml:"data_dir,omitempty"`
	// CacheDir is the directory of type=local caches.
	CacheDir string `yaml:"cache_dir,omitempty"`
	// CertsDir is the directory of `kiln certs`.
	CertsDir string `yaml:"certs_dir,omitempty"`
	// Process is the running `kiln up`. Nil: the profile is of no process.
	Process *Process `yaml:"process,omitempty"`
}

// Service says how to reach one of Kiln's services.
type Service struct {
	// Address is host:port or unix:///path.
	Address string `yaml:"address,omitempty"`
	// HTTPAddress serves metrics, host:port.
	HTTPAddress string `yaml:"http_address,omitempty"`
	// CAFile holds the authorities of the service's certificate.
	CAFile string `yaml:"ca_file,omitempty"`
	// CertFile and KeyFile are the caller's certificate.
	CertFile string `yaml:"cert_file,omitempty"`
	KeyFile  string `yaml:"key_file,omitempty"`
	// ServerName is the name in the service's certificate.
	ServerName string `yaml:"server_name,omitempty"`
	// TokenFile holds the caller's token.
	TokenFile string `yaml:"token_file,omitempty"`
	// Insecure allows plain text to another host.
	Insecure bool `yaml:"insecure,omitempty"`
}

// Registry says where the registry is.
type Registry struct {
	// Address is host:port, as in image references.
	Address string `yaml:"address,omitempty"`
	// CAFile holds the authorities of its certificate.
	CAFile string `yaml:"ca_file,omitempty"`
}

// Daemon says where buildkitd is.
type Daemon struct {
	// Address is unix:///path or tcp://host:port.
	Address string `yaml:"address,omitempty"`
	// ConfigFile is its configuration.
	ConfigFile string `yaml:"config_file,omitempty"`
	// Root is the directory of its state.
	Root string `yaml:"root,omitempty"`
}

// Defaults returns the addresses that Kiln uses when nothing names others.
func Defaults() *Profile {
	return &Profile{
		Name:         "default",
		Builder:      Service{Address: "127.0.0.1:50051", HTTPAddress: "127.0.0.1:9461"},
		CacheManager: Service{Address: "127.0.0.1:50052", HTTPAddress: "127.0.0.1:9462"},
		Janitor:      Service{Address: "127.0.0.1:50053", HTTPAddress: "127.0.0.1:9463"},
		Registry:     Registry{Address: "localhost:5000"},
		Daemon:       Daemon{ConfigFile: "/etc/buildkit/buildkitd.toml"},
		DataDir:      "/var/lib/kiln",
		CacheDir:     "/var/cache/buildkit-cache",
		CertsDir:     "/etc/kiln/certs",
	}
}

// Secret reports whether the profile names a file with a secret.
func (p *Profile) Secret() bool {
	for _, s := range p.services() {
		if s.TokenFile != "" || s.KeyFile != "" {
			return true
		}
	}
	return false
}

func (p *Profile) services() []*Service { return []*Service{&p.Builder, &p.CacheManager, &p.Janitor} }

// maxSize bounds the size of a profile file.
const maxSize = 1 << 20

// Load reads a profile file. Relative paths in it are relative to its directory.
func Load(path string) (*Profile, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fault.Wrap(err, fault.FailedPrecondition, "", "cannot read the profile", "name another one with --profile; `kiln profile ls` lists them")
	}
	defer func() { _ = file.Close() }() // It was only read.
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o002 != 0 {
		return nil, fault.New(fault.FailedPrecondition, "", fmt.Sprintf("profile %s is not a regular file, or every user may write to it", path),
			"run chmod o-w "+path)
	}
	text, err := io.ReadAll(io.LimitReader(file, maxSize))
	if err != nil {
		return nil, err
	}
	p := &Profile{Name: nameOf(path), Path: path}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(p); err != nil && !errors.Is(err, io.EOF) {
		return nil, fault.Wrap(err, fault.InvalidArgument, "", "cannot read profile "+path, "correct the file; `kiln profile --help` shows its fields")
	}
	p.absolute(filepath.Dir(path))
	return p, nil
}

// absolute makes the paths of a profile absolute.
func (p *Profile) absolute(dir string) {
	paths := []*string{&p.Registry.CAFile, &p.Daemon.ConfigFile, &p.Daemon.Root, &p.DataDir, &p.CacheDir, &p.CertsDir}
	for _, s := range p.services() {
		paths = append(paths, &s.CAFile, &s.CertFile, &s.KeyFile, &s.TokenFile)
	}
	for _, path := range paths {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(dir, *path)
		}
	}
}

const extension = ".yaml"

func nameOf(path string) string {
	base := filepath.Base(path)
	return base[:len(base)-len(filepath.Ext(base))]
}
