package up

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/kilnbuild/kiln/pkg/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTakenPort(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	address := listener.Addr().String()
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	a := addresses{free(), free(), free(), free(), free(), free(), free(), free()}
	if err := checkPorts(t.Context(), a); err != nil {
		t.Fatalf("all free: %v", err)
	}
	a.janitor = address
	line := fault.Line(checkPorts(t.Context(), a))
	for _, want := range []string{address, "the janitor", fmt.Sprintf("pid %d (%s", os.Getpid(), os.Args[0][:10]), "--listen-base"} {
		if !strings.Contains(line, want) {
			t.Errorf("%q lacks %q", line, want)
		}
	}
	a.janitor, a.registry = free(), address
	if line := fault.Line(checkPorts(t.Context(), a)); !strings.Contains(line, "--registry-listen") {
		t.Errorf("%q lacks --registry-listen", line)
	}
	a.registry = a.builder
	if line := fault.Line(checkPorts(t.Context(), a)); !strings.Contains(line, "for the builder and for the registry") {
		t.Errorf("one address twice: %q", line)
	}
}

func TestFindBinary(t *testing.T) {
	dir := t.TempDir()
	program, text := filepath.Join(dir, "buildkitd"), filepath.Join(dir, "text")
	if err := errors.Join(os.WriteFile(program, []byte("#!/bin/sh\n"), 0o700), os.WriteFile(text, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	if got, err := findBinary("buildkitd", ""); err != nil || got != program {
		t.Errorf("on $PATH: %q, %v", got, err)
	}
	if got, err := findBinary("anything", program); err != nil || got != program {
		t.Errorf("by flag: %q, %v", got, err)
	}
	for name, flag := range map[string]string{"nosuchprogram": "", "directory": dir, "text": text} {
		if got, err := findBinary(name, flag); err == nil {
			t.Errorf("%s: %q", name, got)
		} else if line := fault.Line(err); !strings.Contains(line, "--"+name) {
			t.Errorf("%q does not name the flag", line)
		}
	}
}

func TestChildEnv(t *testing.T) {
	environ := []string{
		"HOME=/root", "PATH=/opt/bin", "TMPDIR=/elsewhere", "OTEL_SERVICE_NAME=mine", "NOTIFY_SOCKET=/run/notify",
		"LISTEN_FDS=1", "REGISTRY_HTTP_ADDR=0.0.0.0:80", "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317",
	}
	got := childEnv(environ, "buildkitd", "/data/tmp")
	want := []string{
		"OTEL_SERVICE_NAME=buildkitd", "TMPDIR=/data/tmp", "HOME=/root",
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317", "PATH=/opt/bin:" + systemPath,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if !exportsTraces(environ) || exportsTraces([]string{"OTEL_SERVICE_NAME=mine"}) {
		t.Error("exportsTraces")
	}
}

func TestOneLock(t *testing.T) {
	p := paths{root: t.TempDir()}
	lock, err := claim(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	line := ""
	if _, err := claim(t.Context(), p); err != nil {
		line = fault.Line(err)
	}
	for _, want := range []string{"data directory " + p.root + " is in use by kiln up", fmt.Sprintf("(pid %d)", os.Getpid()), "--data-dir"} {
		if !strings.Contains(line, want) {
			t.Errorf("%q lacks %q", line, want)
		}
	}
	if pid, err := running(t.Context(), p.lock()); err != nil || pid != os.Getpid() {
		t.Errorf("running = %d, %v", pid, err)
	}
	release(lock)
	if pid, err := running(t.Context(), p.lock()); err != nil || pid != 0 {
		t.Errorf("after release: running = %d, %v", pid, err)
	}
	// What a killed one leaves: a pid, and no lock.
	if err := os.WriteFile(p.lock(), []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := down(t.Context(), &out, p.root, 0); err != nil || !strings.Contains(out.String(), "no kiln up is running") {
		t.Errorf("down: %v, %q", err, out.String())
	}
	again, err := claim(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	release(again)
}

func TestMountPoints(t *testing.T) {
	table := filepath.Join(t.TempDir(), "mountinfo")
	text := `25 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
60 25 0:50 / /srv/kiln\040data/buildkit/x rw - overlay overlay rw,lowerdir=` + strings.Repeat("/very/long:", 20000) + `
61 25 0:51 / /srv/back\134slash rw - tmpfs tmpfs rw
`
	if err := os.WriteFile(table, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := mountPoints(table)
	want := []string{"/", "/srv/kiln data/buildkit/x", `/srv/back\slash`}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestBelow(t *testing.T) {
	for path, want := range map[string]bool{"/a/b/c": true, "/a/b": false, "/a/bc": false, "/a": false} {
		if below(path, "/a/b") != want {
			t.Errorf("below(%q, /a/b) = %v", path, !want)
		}
	}
}
