package lab_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

// A real daemon builds a Dockerfile with a RUN step on the base image, pushes to
// a real registry, and what comes back from there is right.
func TestBuildkitdAndRegistryBuildAndServe(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{Registries: []string{registry.Addr}}))(t)
	base := labtest.Must(image.PushBase(ctx, registry.Addr))(t)

	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{
		"Dockerfile": "FROM " + base + "\nCOPY in /in\nRUN tr a-z A-Z </in >/out\n",
		"in":         "hello\n",
	})
	ref := registry.Addr + "/lab/hello:1"
	cmd := exec.CommandContext(ctx, labtest.Must(lab.Bin("buildctl"))(t), "--addr", daemon.Addr, "build",
		"--frontend=dockerfile.v0", "--local=context="+dir, "--local=dockerfile="+dir,
		"--output=type=image,push=true,name="+ref)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("buildctl: %v\n%s", err, out)
	}
	img := labtest.Must(image.Pull(ctx, ref, ""))(t)
	if got := string(labtest.Must(image.ReadFile(img, "/out"))(t)); got != "HELLO\n" {
		t.Errorf("/out = %q", got)
	}
}

// A daemon that is killed in the middle of a RUN step leaves no process, no
// container and no mount once the lab has cleaned up, and starts again.
func TestKilledBuildkitdLeavesNothing(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{Registries: []string{registry.Addr}}))(t)
	base := labtest.Must(image.PushBase(ctx, registry.Addr))(t)
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM " + base + "\nRUN while :; do :; done\n"})
	build := labtest.Must(l.Run(lab.Command{Name: "buildctl", Path: labtest.Must(lab.Bin("buildctl"))(t), Args: []string{
		"--addr", daemon.Addr, "build", "--frontend=dockerfile.v0", "--local=context=" + dir, "--local=dockerfile=" + dir,
	}}))(t)
	labtest.Eventually(t, 30*time.Second, "a running container", func() bool { return len(labtest.Must(lab.Containers(daemon.Dir))(t)) == 1 })

	if err := daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	<-build.Done()
	if ids := labtest.Must(lab.Containers(daemon.Dir))(t); len(ids) > 0 {
		t.Errorf("containers left: %v", ids)
	}
	if points := labtest.Must(lab.Mounts(daemon.Dir))(t); len(points) > 0 {
		t.Errorf("mounts left: %v", points)
	}
	if err := daemon.Start(ctx); err != nil {
		t.Errorf("it does not start again: %v", err)
	}
	dirOfLab := l.Dir
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dirOfLab); !os.IsNotExist(err) {
		t.Errorf("the lab's directory is still there: %v", err)
	}
}

// What a part says before it dies is in the error.
func TestPartThatDiesShowsItsLog(t *testing.T) {
	l := labtest.New(t)
	_, err := l.StartBuildkitd(t.Context(), lab.BuildkitdOptions{TOML: "[broken"})
	if err == nil || !strings.Contains(err.Error(), "toml") {
		t.Fatalf("want the daemon's words in the error, got %v", err)
	}
}

// A race that a race-built part reports is not lost in its log.
func TestRacesOfPartsAreErrors(t *testing.T) {
	l := labtest.Must(lab.New())(t)
	p := labtest.Must(l.Run(lab.Command{Name: "racy", Path: "/bin/sh", Args: []string{"-c", "echo 'WARNING: DATA RACE'; echo here"}}))(t)
	<-p.Done()
	if err := l.Close(); err == nil || !strings.Contains(err.Error(), "DATA RACE\nhere") {
		t.Errorf("Close: %v", err)
	}
}

// A builder with failpoints is another binary, and serves until it comes by one.
func TestBuilderWithFailpoints(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, time.Minute)
	builder := labtest.Must(l.StartBuilder(ctx, lab.BuilderConfig(nil, "unix:///nonexistent", "localhost:1"),
		lab.ServiceOptions{Unhealthy: true, Failpoint: "nowhere"}))(t)
	exe := labtest.Must(os.Readlink(fmt.Sprintf("/proc/%d/exe", builder.PID())))(t)
	if !strings.HasSuffix(exe, "/failpoints/kiln-builder") {
		t.Errorf("it runs %s", exe)
	}
}

func TestMissingBinarySaysWhatToRun(t *testing.T) {
	if _, err := lab.Bin("no-such-binary"); err == nil || !strings.Contains(err.Error(), "make tools build") {
		t.Fatalf("got %v", err)
	}
}

func TestProxyDelaysHoldsAndCuts(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	proxy := labtest.Must(l.StartProxy(registry.Addr))(t)
	get := func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+proxy.Addr+"/v2/", nil)
		if err != nil {
			return err
		}
		req.Close = true
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
	if err := get(ctx); err != nil {
		t.Fatal(err)
	}
	if proxy.Bytes() == 0 {
		t.Error("no bytes were counted")
	}
	proxy.SetDelay(100 * time.Millisecond)
	start := time.Now()
	if err := get(ctx); err != nil || time.Since(start) < 200*time.Millisecond {
		t.Errorf("delayed both ways: %v after %s", err, time.Since(start))
	}
	proxy.SetDelay(0)
	proxy.Hold()
	held, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if err := get(held); err == nil {
		t.Error("a held proxy answered")
	}
	proxy.Release()
	if err := get(ctx); err != nil {
		t.Error(err)
	}
}
