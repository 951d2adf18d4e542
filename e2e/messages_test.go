package e2e_test

import (
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// jargon is what no message to a user holds.
var jargon = []string{"rpc error", "code = ", "desc = ", "transport:", "http2:", "preface", "panic", "goroutine", "max_attempts"}

// said checks what a command that failed has said: the parts that are wanted, on one
// line, without jargon.
func said(t *testing.T, what string, out lab.Output, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: it ended with 0: %s%s", what, out.Stdout, out.Stderr)
		return
	}
	lines := strings.Split(strings.TrimSpace(out.Stderr), "\n")
	last := lines[len(lines)-1]
	for _, part := range want {
		if !strings.Contains(last, part) {
			t.Errorf("%s: no %q in %q", what, part, last)
		}
	}
	for _, word := range jargon {
		if strings.Contains(out.Stderr, word) {
			t.Errorf("%s: %q in\n%s", what, word, out.Stderr)
		}
	}
}

// calls are a command for each of the services, and those that build.
func calls(dir string) map[string][]string {
	return map[string][]string{
		"builder": {"builds", "ls"}, "workers": {"workers"}, "cache-manager": {"cache", "du"}, "janitor": {"janitor", "runs"}, "clean-cache": {"clean-cache"},
		"build": {"build", "--progress", "none", dir}, "build-three": {"build", "--progress", "plain", dir, dir, "web:1"}, "detach": {"build", "--detach", "-t", "web", dir},
		"check": {"build", "--check", dir},
	}
}

// flagOf is the flag with the address of the service that a command calls.
func flagOf(name string) string {
	switch name {
	case "cache-manager", "clean-cache":
		return "--cache-manager"
	case "janitor":
		return "--janitor"
	default:
		return "--builder"
	}
}

// Each command says of each broken connection what failed, where, and what to do.
func TestMessages_OfBrokenConnections(t *testing.T) {
	l := labtest.New(t)
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	tls := httptest.NewUnstartedServer(http.NotFoundHandler())
	tls.EnableHTTP2 = true
	tls.StartTLS()
	t.Cleanup(tls.Close)
	closing := closingServer(t)
	ca := filepath.Join(t.TempDir(), "ca.crt")
	labtest.Write(t, filepath.Dir(ca), map[string]string{"ca.crt": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tls.Certificate().Raw}))})
	for _, test := range []struct {
		name, address string
		flags         []string
		want          []string
	}{
		{"nothing listens", "127.0.0.1:1", nil, []string{"127.0.0.1:1", "nothing listens", "kiln up"}},
		{"no socket", "unix:///nonexistent.sock", nil, []string{"/nonexistent.sock", "socket is not there"}},
		{"HTTP server", plain.Listener.Addr().String(), nil, []string{"HTTP/1", "gRPC port"}},
		{"plain text to TLS", tls.Listener.Addr().String(), nil, []string{"TLS", "--tls-ca"}},
		{"closes at once", closing, nil, []string{"the connection", "TLS"}},
		{"TLS to plain text", plain.Listener.Addr().String(), []string{"--tls-ca", ca}, []string{"plain text", "leave out --tls-ca"}},
		{"unknown authority", tls.Listener.Addr().String(), []string{"--tls-server-name", "example.com"}, []string{"authority", "--tls-ca"}},
		{"other name", tls.Listener.Addr().String(), []string{"--tls-ca", ca, "--tls-server-name", "other.example.org"}, []string{"another name", "--tls-server-name"}},
		{"no such host", "nowhere.invalid:1", []string{"--insecure"}, []string{"nowhere.invalid"}},
		{"no such file", "127.0.0.1:1", []string{"--tls-ca", "/nonexistent.crt"}, []string{"/nonexistent.crt"}},
	} {
		for name, args := range calls(dir) {
			if name == "detach" && test.name != "nothing listens" {
				continue // It tries for half a minute, in case the builder is restarted.
			}
			out, err := lab.Exec(labtest.Context(t, time.Minute), lab.Command{
				Path: labtest.Must(lab.Bin("kiln"))(t), Args: append(append(args, flagOf(name), test.address), test.flags...), Dir: l.Dir,
			})
			said(t, test.name+": "+name, out, err, test.want...)
		}
	}
}

// closingServer closes each connection at once. It returns its address.
func closingServer(t *testing.T) string {
	t.Helper()
	ln := labtest.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	return ln.Addr().String()
}

// A daemon that is down is told as the daemon, and not as the builder; one who is
// refused hears why; a builder that is stopped under a build says so.
func TestMessages_OfServicesThatAnswer(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\nRUN sleep 60\n", "fast": "FROM scratch\nCOPY fast /\n"})
	kiln := func(args ...string) (lab.Output, error) {
		t.Helper()
		return s.kiln(t, args...)
	}
	hanging := labtest.Must(s.lab.Run(lab.Command{
		Name: "kiln", Path: labtest.Must(lab.Bin("kiln"))(t), Args: []string{"build", "--progress", "plain", dir}, Env: []string{"KILN_BUILDER=" + s.Builder.Addr},
	}))(t)
	labtest.Eventually(t, 30*time.Second, "the step runs", func() bool { return strings.Contains(hanging.Output(), "RUN sleep 60") })
	ctx := labtest.Context(t, time.Minute)
	labtest.Must(0, s.Builder.Kill())(t)
	<-hanging.Done()
	if hanging.ExitCode() != 1 {
		t.Errorf("builder killed: it ended with %d", hanging.ExitCode())
	}
	said(t, "builder killed", lab.Output{Stderr: hanging.Output()}, errors.New("ended"), s.Builder.Addr, "broke the connection", "again")

	labtest.Must(0, s.Builder.Start(ctx))(t)
	labtest.Must(0, s.Buildkitd.Stop(ctx))(t)
	for name, args := range map[string][]string{"build": {"build", "--progress", "none", "-f", dir + "/fast", dir}, "check": {"build", "--check", dir}} {
		out, err := kiln(args...)
		said(t, "daemon down: "+name, out, err, "buildkitd")
		if strings.Contains(out.Stderr, "cannot reach the builder") {
			t.Errorf("%s: the daemon's failure is told as the builder's: %s", name, out.Stderr)
		}
	}
}

// A caller without a token hears what to show.
func TestMessages_OfRefusals(t *testing.T) {
	config := t.TempDir()
	labtest.Must(kilnCommand(t, config, "token", "new", "me", "--file", "tokens.yaml"))(t)
	labtest.Write(t, config, map[string]string{"rules.yaml": `rules:
  - identities: [me]
    methods: ["*"]
  - identities: ["*"]
    methods: ["/grpc.health.v1.Health/*"]
`, "wrong.token": "kiln_wrong"})
	s := ownStack(t, lab.StackOptions{Builder: &configv1.BuilderConfig{Server: &configv1.ServerConfig{
		TokensFile: filepath.Join(config, "tokens.yaml"), PolicyFile: filepath.Join(config, "rules.yaml"),
	}}})
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
	for _, credentials := range [][]string{nil, {"--token-file", filepath.Join(config, "wrong.token")}} {
		for _, args := range [][]string{{"builds", "ls"}, {"workers"}, {"build", "--progress", "none", dir}, {"build", "--detach", "-t", "web", dir}, {"build", "--check", dir}} {
			out, err := s.kiln(t, append(args, credentials...)...)
			said(t, strings.Join(append(args, credentials...), " "), out, err, "token")
		}
	}
}
