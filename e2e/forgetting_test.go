package e2e_test

import (
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// telling is a build whose step writes its secret out and then sleeps.
func (s *stack) telling(secret, sleep string) *builderv1.BuildSpec {
	spec := dockerfile("FROM " + s.base + "\nRUN --mount=type=secret,id=tok cat /run/secrets/tok; echo; echo told; sleep " + sleep + "; echo " + unique() + "\n")
	spec.Secrets = []*builderv1.Secret{{Id: "tok", Value: []byte(secret)}}
	return spec
}

// remembered asks the daemon itself for the refs of its history.
func (s *stack) remembered(t *testing.T) []string {
	t.Helper()
	ctx := labtest.Context(t, 10*time.Second)
	c := labtest.Must(client.New(ctx, s.Buildkitd.Addr))(t)
	defer func() { _ = c.Close() }()
	stream := labtest.Must(c.ControlClient().ListenBuildHistory(ctx, &controlapi.BuildHistoryRequest{EarlyExit: true}))(t)
	var refs []string
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return refs
		}
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, event.GetRecord().GetRef())
	}
}

// forgotten waits until the daemon has no record of a build and no file with its secret,
// and fails if the builder has one.
func (s *stack) forgotten(t *testing.T, id, secret string) {
	t.Helper()
	labtest.Eventually(t, time.Minute, "the daemon forgets "+id, func() bool {
		return !strings.Contains(strings.Join(s.remembered(t), " "), id)
	})
	labtest.Eventually(t, time.Minute, "no file of the daemon has the secret", func() bool {
		return len(filesWith(t, filepath.Join(s.Buildkitd.Dir, "root"), secret)) == 0
	})
	if found := filesWith(t, s.Builder.State, secret); len(found) != 0 {
		t.Errorf("the builder has the secret in %v", found)
	}
	if strings.Contains(s.Builder.Output(), secret) {
		t.Error("the secret is in the builder's log")
	}
}

// The daemon's own record of a build with secrets has its log as it was. It goes, also
// when the builder or the daemon is killed while the build runs.
func TestSecrets_LeaveTheDaemonsHistoryAfterACrash(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	secret := canarySecret(t)

	id := s.start(t, s.telling(secret, "3"), "").GetId()
	s.running(t, id, "told")
	s.restart(t) // kills the builder
	// The daemon ends the build by itself, and then has a record of it.
	time.Sleep(2 * time.Second)
	s.forgotten(t, id, secret)
	if log := watch(t.Context(), s.api, id, 0).log(); strings.Contains(log, secret) {
		t.Errorf("the secret is in the build's events: %q", log)
	}

	id = s.start(t, s.telling(secret, "30"), "").GetId()
	s.running(t, id, "told")
	labtest.Must(0, s.Buildkitd.Kill())(t)
	labtest.Must(0, s.Buildkitd.Start(labtest.Context(t, time.Minute)))(t)
	s.forgotten(t, id, secret)
}

// A daemon that is away when the builder would have it drop a record drops it later.
func TestSecrets_LeaveTheHistoryOfADaemonThatWasAway(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	secret := canarySecret(t)
	id := s.start(t, s.telling(secret, "2"), "").GetId()
	s.running(t, id, "told")
	labtest.Must(0, s.Builder.Kill())(t)
	labtest.Eventually(t, 30*time.Second, "the daemon has a record of the build", func() bool {
		return len(s.active(t)) == 0 && strings.Contains(strings.Join(s.remembered(t), " "), id)
	})
	labtest.Must(0, s.Buildkitd.Kill())(t)
	started := make(chan error, 1)
	go func() { started <- s.Builder.Start(labtest.Context(t, time.Minute)) }()
	time.Sleep(3 * time.Second) // removals fail meanwhile
	labtest.Must(0, s.Buildkitd.Start(labtest.Context(t, time.Minute)))(t)
	labtest.Must(0, <-started)(t)
	s.forgotten(t, id, secret)
}

// A daemon that gets a new name in the configuration while it has a record with a secret
// drops it all the same; the builder says that it looks for it there.
func TestSecrets_LeaveTheHistoryOfADaemonThatWasRenamed(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	secret := canarySecret(t)
	id := s.start(t, s.telling(secret, "2"), "").GetId()
	s.running(t, id, "told")
	labtest.Must(0, s.Builder.Kill())(t)
	labtest.Eventually(t, 30*time.Second, "the daemon has a record of the build", func() bool {
		return len(s.active(t)) == 0 && strings.Contains(strings.Join(s.remembered(t), " "), id)
	})
	cfg := lab.BuilderConfig(&configv1.BuilderConfig{StateDir: s.Builder.State}, s.Buildkitd.Addr, s.Registry.Addr)
	cfg.Daemons[0].Name = "renamed"
	b := labtest.Must(s.lab.StartBuilder(labtest.Context(t, time.Minute), cfg, lab.ServiceOptions{}))(t)
	s.forgotten(t, id, secret)
	if out := b.Output(); !strings.Contains(out, "a daemon is no longer configured") || !strings.Contains(out, "prune-histories") {
		t.Errorf("the builder does not say where it looks:\n%s", out)
	}
}

// What the builder stores of a gateway build is masked for the secrets that its client
// gave to the daemon.
func TestGateway_SecretsAreMaskedInWhatIsStored(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	secret := canarySecret(t)
	dir := s.dir(t, map[string]string{
		"Dockerfile": "FROM " + s.base + "\nRUN --mount=type=secret,id=tok cat /run/secrets/tok; head -c 20 /run/secrets/tok; sleep 0.3; tail -c +21 /run/secrets/tok; echo; exit 3 # " + unique() + "\n",
		"tok":        secret,
	})
	_, err := lab.Exec(labtest.Context(t, time.Minute), buildctl(t, "tcp://"+s.Builder.Addr, dir, "--secret", "id=tok,src="+filepath.Join(dir, "tok")))
	if err == nil {
		t.Fatal("the step that fails did not fail")
	}
	rec := labtest.Must(s.api.ListBuilds(t.Context(), &builderv1.ListBuildsRequest{PageSize: 1}))(t).GetBuilds()[0]
	stored := s.ended(t, rec.GetId(), builderv1.BuildState_BUILD_STATE_FAILED)
	if log := stored.log(); strings.Contains(log, secret) || !strings.Contains(log, "***") {
		t.Errorf("the stored log is %q", log)
	}
	if text := stored.outcome.String(); strings.Contains(text, secret) {
		t.Errorf("the outcome has the secret: %s", text)
	}
	if found := filesWith(t, s.Builder.State, secret); len(found) != 0 {
		t.Errorf("the builder has the secret in %v", found)
	}
}
