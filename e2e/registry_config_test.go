package e2e_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

// envFile are the variables of a file, with what their values are of this machine.
func envFile(t *testing.T, name string, here map[string]string) (all []string) {
	t.Helper()
	for line := range strings.Lines(string(labtest.Must(os.ReadFile(filepath.Join("../deploy/registry", name)))(t))) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		for from, to := range here {
			line = strings.ReplaceAll(line, from, to)
		}
		all = append(all, line)
	}
	if len(all) == 0 {
		t.Fatalf("%s has no variable", name)
	}
	return all
}

// startShipped starts a registry with the configuration that is shipped.
func startShipped(t *testing.T, l *lab.Lab, closed bool, env ...string) *lab.Registry {
	t.Helper()
	shipped := string(labtest.Must(os.ReadFile("../deploy/registry/config.yml"))(t))
	shipped = strings.ReplaceAll(shipped, "/var/lib/registry", filepath.Join(t.TempDir(), "storage"))
	// It is told at level info where it listens.
	base := []string{"REGISTRY_LOG_LEVEL=info", "REGISTRY_HTTP_ADDR=127.0.0.1:0"}
	return labtest.Must(l.StartRegistry(labtest.Context(t, time.Minute), lab.RegistryOptions{Config: shipped, Env: append(base, env...), Closed: closed}))(t)
}

// notificationsEnv is what the registry has to be told, as the script that is shipped says it,
// with the secret in a file that it makes.
func notificationsEnv(t *testing.T, file, url string) string {
	t.Helper()
	return strings.TrimSpace(labtest.Must(lab.Exec(labtest.Context(t, time.Minute), lab.Command{
		Path: labtest.Must(filepath.Abs("../deploy/scripts/notifications-env.sh"))(t), Args: []string{file, url},
	}))(t).Stdout)
}

// The registry's configuration as it is shipped takes pushes and deletes, and keeps no cache
// of descriptors.
func TestS13_RegistryConfiguration(t *testing.T) {
	l := labtest.New(t)
	r := startShipped(t, l, false)
	ref := labtest.Must(image.PushBase(labtest.Context(t, time.Minute), r.Addr))(t)
	digest := labtest.Must(image.Digest(t.Context(), ref))(t)
	req := labtest.Must(http.NewRequestWithContext(t.Context(), http.MethodDelete, fmt.Sprintf("http://%s/v2/base/manifests/%s", r.Addr, digest), nil))(t)
	repository, _, _ := strings.Cut(strings.TrimPrefix(ref, r.Addr+"/"), ":")
	repository, _, _ = strings.Cut(repository, "@")
	req.URL.Path = fmt.Sprintf("/v2/%s/manifests/%s", repository, digest)
	req.Close = true
	res := labtest.Must(http.DefaultClient.Do(req))(t)
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusAccepted {
		t.Errorf("a delete gets %s", res.Status)
	}
	if text := string(labtest.Must(os.ReadFile("../deploy/registry/config.yml"))(t)); strings.Contains(text, "\n  cache:") || strings.Contains(text, "Bearer") {
		t.Error("it has a cache of descriptors, or a secret")
	}
}

// With certificates and with users, each and together: who has none gets nothing.
func TestS7_RegistryWithCertificatesAndUsers(t *testing.T) {
	l := labtest.New(t)
	dir := filepath.Join(l.Dir, "pki")
	runKiln(t, "certs", "init", "--dir", dir)
	runKiln(t, "certs", "issue", "registry", "--host", "127.0.0.1", "--dir", dir)
	hash := string(labtest.Must(bcrypt.GenerateFromPassword([]byte("opensesame"), bcrypt.MinCost))(t))
	labtest.Write(t, dir, map[string]string{"htpasswd": "kiln:" + hash + "\n"})
	here := map[string]string{"/etc/kiln/certs": dir, "/etc/kiln/htpasswd": filepath.Join(dir, "htpasswd"), "0.0.0.0:5000": "127.0.0.1:0"}
	r := startShipped(t, l, true, append(envFile(t, "tls.env", here), envFile(t, "htpasswd.env", here)...)...)
	get := func(ca string, user bool) (string, error) {
		args := []string{"--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "https://" + r.Addr + "/v2/_catalog"}
		if ca != "" {
			args = append(args, "--cacert", ca)
		}
		if user {
			args = append(args, "--user", "kiln:opensesame")
		}
		out, err := lab.Exec(labtest.Context(t, time.Minute), lab.Command{Path: "/usr/bin/env", Args: append([]string{"curl"}, args...)})
		return out.Stdout, err
	}
	ca := filepath.Join(dir, "ca.crt")
	if code, err := get(ca, true); err != nil || code != "200" {
		t.Errorf("with both: %s, %v", code, err)
	}
	if code, err := get(ca, false); err != nil || code != "401" {
		t.Errorf("without a user: %s, %v", code, err)
	}
	if code, err := get("", true); err == nil {
		t.Errorf("without the authority: %s", code)
	}
}

// The notifications, as the script makes them: what is pushed is told, with the secret of the
// file, which nobody else may read and which no log has.
func TestS13_RegistryNotifications(t *testing.T) {
	l := labtest.New(t)
	file := filepath.Join(l.Dir, "notifications.secret")
	var told atomic.Int64
	var secret string
	listener := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		var events struct{ Events []struct{ Action string } }
		if req.Header.Get("Authorization") == "Bearer "+secret && json.NewDecoder(io.LimitReader(req.Body, 1<<20)).Decode(&events) == nil {
			told.Add(int64(len(events.Events)))
		}
	}))
	defer listener.Close()
	env := notificationsEnv(t, file, listener.URL+"/registry-events")
	secret = string(labtest.Must(os.ReadFile(file))(t))
	if mode := labtest.Must(os.Stat(file))(t).Mode().Perm(); len(secret) != 64 || mode&0o007 != 0 || env != notificationsEnv(t, file, listener.URL+"/registry-events") {
		t.Errorf("a secret of %d bytes, mode %o, or another one the second time", len(secret), mode)
	}
	r := startShipped(t, l, false, env, "REGISTRY_LOG_LEVEL=info")
	labtest.Must(image.PushBase(labtest.Context(t, time.Minute), r.Addr))(t)
	labtest.Eventually(t, 20*time.Second, "notifications", func() bool { return told.Load() > 0 })
}
