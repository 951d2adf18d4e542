package gateway_test

import (
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

// An error of the daemon holds the Dockerfile. One that is larger than a trailer may be
// fails its own build, and no other of the same daemon.
func TestSolve_WithAnErrorThatIsTooLargeFailsAlone(t *testing.T) {
	s := bakeStack(t, 4)
	ctx := labtest.Context(t, 2*time.Minute)
	build := func(dir, dockerfile string) error {
		labtest.Write(t, dir, map[string]string{"Dockerfile": dockerfile})
		_, err := lab.Exec(ctx, lab.Command{
			Name: "buildctl", Path: labtest.Must(lab.Bin("buildctl"))(t), Args: []string{"--addr", "tcp://" + s.Builder.Addr, "build",
				"--frontend", "dockerfile.v0", "--local", "context=" + dir, "--local", "dockerfile=" + dir},
		})
		return err
	}
	victim, other := t.TempDir(), t.TempDir()
	base := labtest.Must(image.PushBase(ctx, s.Registry.Addr))(t)
	ended := make(chan error, 1)
	go func() { ended <- build(victim, "FROM "+base+"\nRUN sleep 12\n") }()
	time.Sleep(2 * time.Second)
	if err := build(other, "FROM "+base+"\n"+strings.Repeat("# "+strings.Repeat("z", 60_000)+"\n", 183)+"RUN exit 3\n"); err == nil {
		t.Error("the build with the large Dockerfile is expected to fail")
	}
	if err := <-ended; err != nil {
		t.Errorf("the other build: %v", err)
	}
}
