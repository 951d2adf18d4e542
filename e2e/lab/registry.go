package lab

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
)

// RegistryOptions says how to run a registry. The zero value is an empty one on
// a free port.
type RegistryOptions struct {
	// Storage is the root directory of its storage. Empty: a new one of the lab.
	Storage string
	// S3 is a server of S3 that has its storage instead.
	S3 *S3
	// Addr is the loopback address to listen on. Empty: a free port.
	Addr string
	// DescriptorCache turns on the in-memory cache of blob descriptors that the
	// registry's official image turns on.
	DescriptorCache bool
	// YAML is added to its configuration.
	YAML string
	// Config is its whole configuration, in place of all the above; it has to listen on a
	// port of 127.0.0.1.
	Config string
	// Env is added to its environment.
	Env []string
	// Closed: come back as soon as it listens. It speaks TLS, or asks who is there.
	Closed bool
}

// Registry is a CNCF distribution registry with filesystem storage, plain HTTP,
// with deletes allowed.
type Registry struct {
	*Process
	// Addr is host:port, as in image references.
	Addr string
	// Storage is the root directory of its storage, or that of its bucket.
	Storage string
	// ConfigFile is the file of its configuration, and S3 the server that has its storage.
	ConfigFile string
	S3         *S3
}

// CollectGarbage runs the registry's own garbage collection of its storage. What is pushed
// meanwhile may break.
func (r *Registry) CollectGarbage(ctx context.Context, flags ...string) error {
	path, err := Bin("registry")
	if err != nil {
		return err
	}
	_, err = Exec(ctx, Command{Name: "registry garbage-collect", Path: path, Args: append(append([]string{"garbage-collect"}, flags...), r.ConfigFile), Env: OTLPEnv("", "")})
	return err
}

var listeningOn = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// rootDirectory is where a configuration has the storage.
var rootDirectory = regexp.MustCompile(`(?m)^ +rootdirectory: (\S+)$`)

// StartRegistry runs a registry and waits until it answers.
func (l *Lab) StartRegistry(ctx context.Context, opts RegistryOptions) (*Registry, error) {
	path, err := Bin("registry")
	if err != nil {
		return nil, err
	}
	dir, err := l.subdir("registry")
	if err != nil {
		return nil, err
	}
	r := &Registry{Storage: opts.Storage, S3: opts.S3}
	switch {
	case r.S3 != nil:
		r.Storage = r.S3.Dir
	case r.Storage == "":
		r.Storage = filepath.Join(dir, "storage")
	}
	listen := opts.Addr
	if listen == "" {
		listen = "127.0.0.1:0"
	}
	r.ConfigFile = filepath.Join(dir, "config.yml")
	text := opts.Config
	if text == "" {
		text = registryYAML(r.Storage, listen, opts)
	} else if m := rootDirectory.FindStringSubmatch(text); m != nil {
		r.Storage = m[1]
	}
	if err := os.WriteFile(r.ConfigFile, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	r.Process, err = l.Run(Command{
		Name: filepath.Base(dir), Path: path, Args: []string{"serve", r.ConfigFile}, Env: append(OTLPEnv("", ""), opts.Env...),
	})
	if err != nil {
		return nil, err
	}
	return r, poll(ctx, r.Process, "waiting for the registry", func(ctx context.Context) error {
		m := listeningOn.FindStringSubmatch(r.Output())
		if m == nil {
			return fmt.Errorf("lab: %s does not listen yet", r.Name)
		}
		r.Addr = m[1]
		if opts.Closed {
			return nil
		}
		return getOK(ctx, "http://"+r.Addr+"/v2/")
	})
}

func registryYAML(storage, listen string, opts RegistryOptions) string {
	cache := ""
	if opts.DescriptorCache {
		cache = "  cache:\n    blobdescriptor: inmemory\n"
	}
	driver := fmt.Sprintf("  filesystem:\n    rootdirectory: %q\n", storage)
	if opts.S3 != nil {
		driver = opts.S3.yaml()
	}
	return fmt.Sprintf(`version: 0.1
log:
  level: info
  accesslog:
    disabled: true
storage:
%s%s  delete:
    enabled: true
http:
  addr: %q
`, cache, driver, listen) + opts.YAML
}

// getOK is nil when a GET of url answers 200.
func getOK(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	req.Close = true // Leave no idle connection behind.
	resp, err := (&http.Client{Timeout: startTimeout}).Do(req)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("lab: GET %s: %s", url, resp.Status)
	}
	return nil
}
