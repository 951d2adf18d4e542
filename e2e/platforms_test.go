package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

const sayWhere = `package main

import (
	"os"
	"runtime"
)

func main() {
	if len(os.Args) > 1 {
		if os.WriteFile(os.Args[1], []byte(runtime.GOARCH), 0o644) != nil {
			os.Exit(1)
		}
		return
	}
	os.Stdout.WriteString("this is " + runtime.GOARCH + "\n")
}
`

// One build for linux/amd64 and linux/arm64: a step of each platform runs its own binary, the
// foreign one under an emulator that the daemon finds in its PATH, and so do the images that
// come out of it.
func TestS10_EachPlatformRuns(t *testing.T) {
	emulator := labtest.Must(exec.LookPath("qemu-aarch64-static"))(t)
	tools := t.TempDir()
	if err := os.Symlink(emulator, filepath.Join(tools, "buildkit-qemu-aarch64")); err != nil {
		t.Fatal(err)
	}
	s := ownStack(t, lab.StackOptions{Buildkitd: lab.BuildkitdOptions{Env: []string{"PATH=" + tools + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin"}}})
	dir := s.dir(t, map[string]string{
		"main.go": sayWhere, "go.mod": "module where\n\ngo 1.26\n",
		"Dockerfile": "FROM scratch\nARG TARGETARCH\nCOPY where-$TARGETARCH /where\nRUN [\"/where\", \"/ran\"]\n",
	})
	archs := []string{"amd64", "arm64"}
	for _, arch := range archs {
		labtest.Must(lab.Exec(labtest.Context(t, 3*time.Minute), lab.Command{
			Path: labtest.Must(exec.LookPath("go"))(t), Args: []string{"build", "-o", "where-" + arch, "."}, Dir: dir,
			Env: []string{"GOARCH=" + arch, "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off"},
		}))(t)
	}
	labtest.Must(s.kiln(t, "build", dir, dir, s.ref("s10-run"), "--push", "--platform", "linux/amd64,linux/arm64", "--progress", "quiet"))(t)

	for _, arch := range archs {
		img := labtest.Must(image.Pull(labtest.Context(t, time.Minute), s.ref("s10-run"), "linux/"+arch))(t)
		if got := labtest.Must(image.ReadFile(img, "/ran"))(t); string(got) != arch {
			t.Errorf("%s: the step ran on %q", arch, got)
		}
		binary := filepath.Join(t.TempDir(), "where")
		if err := os.WriteFile(binary, labtest.Must(image.ReadFile(img, "/where"))(t), 0o700); err != nil {
			t.Fatal(err)
		}
		run := lab.Command{Path: binary}
		if arch == "arm64" {
			run = lab.Command{Path: emulator, Args: []string{binary}}
		}
		if out := labtest.Must(lab.Exec(labtest.Context(t, time.Minute), run))(t); strings.TrimSpace(out.Stdout) != "this is "+arch {
			t.Errorf("%s: the image says %q", arch, out.Stdout)
		}
	}
}
