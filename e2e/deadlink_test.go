package e2e_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// A network that drops every packet of a build ends the command within a minute, and
// the build at the builder, which cannot hear of it either, within two.
func TestDeadLink_EndsTheCommandAndTheBuild(t *testing.T) {
	s := sharedStack(t)
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\nRUN echo " + unique() + "; sleep 300\n"})
	proxy := labtest.Must(s.lab.StartProxy(s.Builder.Addr))(t)
	t.Cleanup(proxy.Release)
	build := labtest.Must(s.lab.Run(lab.Command{
		Name: "dead-link", Path: labtest.Must(lab.Bin("kiln"))(t),
		Args: []string{"build", "--progress", "plain", "--project", "dead-link", "--builder", proxy.Addr, dir},
	}))(t)
	labtest.Eventually(t, 30*time.Second, "the step runs", func() bool { return strings.Contains(build.Output(), "] RUN echo") })
	proxy.Hold()
	held := time.Now()
	select {
	case <-build.Done():
	case <-time.After(time.Minute):
		t.Fatalf("the command hangs: %s", build.Output())
	}
	said(t, "dead link", lab.Output{Stderr: build.Output()}, errors.New("ended"), proxy.Addr, "the connection was lost", "network")
	if build.ExitCode() != 1 {
		t.Errorf("it ended with %d", build.ExitCode())
	}
	labtest.Eventually(t, 2*time.Minute-time.Since(held), "the builder notices", func() bool {
		all, err := s.api.ListBuilds(t.Context(), &builderv1.ListBuildsRequest{Filter: `project = "dead-link"`})
		return err == nil && len(all.GetBuilds()) > 0 && all.GetBuilds()[0].GetState() == builderv1.BuildState_BUILD_STATE_CANCELLED
	})
}
