package e2e_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	"github.com/kilnbuild/kiln/pkg/testkit"
)

// startUp runs `kiln up` in the foreground.
func startUp(t *testing.T, l *lab.Lab, opts lab.UpOptions) *lab.Up {
	t.Helper()
	return labtest.Must(l.StartUp(labtest.Context(t, 2*time.Minute), opts))(t)
}

// kilnCommand runs the kiln command to its end.
func kilnCommand(t *testing.T, dir string, args ...string) (lab.Output, error) {
	t.Helper()
	return lab.Exec(labtest.Context(t, time.Minute), lab.Command{Path: labtest.Must(lab.Bin("kiln"))(t), Args: args, Dir: dir})
}

// daemons returns the processes that name a data directory, by program.
func daemons(t *testing.T, dataDir string) map[string]int {
	t.Helper()
	found := map[string]int{}
	for _, path := range labtest.Must(filepath.Glob("/proc/[0-9]*/cmdline"))(t) {
		line, err := os.ReadFile(path)
		if args := strings.Split(string(line), "\x00"); err == nil && strings.Contains(string(line), dataDir) {
			found[filepath.Base(args[0])] = labtest.Must(strconv.Atoi(filepath.Base(filepath.Dir(path))))(t)
		}
	}
	return found
}

// nothingLeft fails the test when something of an ended `kiln up` is still there.
func nothingLeft(t *testing.T, up *lab.Up) {
	t.Helper()
	labtest.Eventually(t, 10*time.Second, "its processes end", func() bool { return len(daemons(t, up.DataDir)) == 0 })
	if mounts := labtest.Must(lab.Mounts(up.DataDir))(t); len(mounts) > 0 {
		t.Errorf("still mounted: %v", mounts)
	}
	if containers := labtest.Must(lab.Containers(up.DataDir))(t); len(containers) > 0 {
		t.Errorf("containers left: %v", containers)
	}
	for _, offset := range []int{0, 1, 2, 3, 10, 11, 12, 20} {
		listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(up.Base+offset)))
		if err != nil {
			t.Errorf("a port is still taken: %v", err)
			continue
		}
		_ = listener.Close()
	}
	if sockets := labtest.Must(filepath.Glob(filepath.Join(up.DataDir, "*.sock")))(t); len(sockets) > 0 {
		t.Errorf("sockets left: %v", sockets)
	}
}

// hangingBuild starts a build through the builder whose RUN step does not end,
// with a process of its own in the background, and waits until both run. (The
// quotes tell what it writes from the step's name.)
func hangingBuild(t *testing.T, l *lab.Lab, up *lab.Up) *lab.Process {
	t.Helper()
	base := labtest.Must(image.PushBase(labtest.Context(t, time.Minute), up.Registry))(t)
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM " + base + "\nRUN sleep 300 & echo it-'runs' " + unique() + "; sleep 300\n"})
	build := labtest.Must(l.Run(buildctl(t, "tcp://"+up.Builder, dir)))(t)
	labtest.Eventually(t, time.Minute, "the step runs", func() bool { return strings.Contains(build.Output(), " it-runs ") })
	return build
}

// What `kiln up` prints is true: all listens where it says, and the three commands
// that it suggests work.
func TestUpSaysWhatToTry(t *testing.T) {
	l := labtest.New(t)
	up := startUp(t, l, lab.UpOptions{})
	labtest.Eventually(t, 10*time.Second, "the summary", func() bool { return strings.Contains(up.Output(), "Ctrl-C") })
	said := up.Output()
	for _, want := range []string{up.Builder, up.CacheManager, up.Janitor, "localhost:" + strconv.Itoa(up.Base+20), up.Buildkitd, up.DataDir} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in:\n%s", want, said)
		}
	}

	base := labtest.Must(image.PushBase(labtest.Context(t, time.Minute), up.Registry))(t)
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM " + base + "\nRUN echo hello >/hello\n"})
	_, suggested, _ := strings.Cut(said, "Try:\n")
	commands := strings.Split(suggested, "\n")[:3]
	for _, command := range commands {
		args := strings.Fields(command)
		path := labtest.Must(lab.Bin(args[0]))(t)
		out, err := lab.Exec(labtest.Context(t, time.Minute), lab.Command{Path: path, Args: args[1:], Dir: dir})
		if err != nil {
			t.Errorf("%s: %v", command, err)
		}
		if args[0] == "grpcurl" && !strings.Contains(out.Stdout, "kiln.builder.v1.BuilderService") {
			t.Errorf("%s says:\n%s", command, out.Stdout)
		}
	}
	ref := up.Registry + "/hello:dev"
	if got := file(t, ref, "", "/hello"); got != "hello\n" {
		t.Errorf("/hello is %q", got)
	}

	if err := up.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-up.Done()
	if code := up.ExitCode(); code != 0 {
		t.Errorf("exit code %d\n%s", code, up.Output())
	}
	nothingLeft(t, up)

	// The state is kept: another start serves what the first one took.
	again := startUp(t, l, lab.UpOptions{DataDir: up.DataDir})
	if got := file(t, again.Registry+"/hello:dev", "", "/hello"); got != "hello\n" {
		t.Errorf("after a restart /hello is %q", got)
	}
}

// One trace goes through all that kiln up runs, each part under its own name,
// whatever name its own environment has.
func TestUpTraces(t *testing.T) {
	l := labtest.New(t)
	collector := testkit.NewOTLP(t)
	up := startUp(t, l, lab.UpOptions{Env: append(collector.Environ(), "OTEL_SERVICE_NAME=somebody")})
	base := labtest.Must(image.PushBase(labtest.Context(t, time.Minute), up.Registry))(t)
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM " + base + "\nRUN echo " + unique() + "\n"})
	kilnBuildIsOneTree(t, collector, up.Builder, dir, up.Registry+"/traced:1")
	for _, span := range collector.Spans() {
		if span.Service == "somebody" {
			t.Errorf("%s has a service name that is not its own", span.Name)
		}
	}
}

// A data directory or a port in use is one line that names the owner and the flag.
func TestUpTwice(t *testing.T) {
	l := labtest.New(t)
	up := startUp(t, l, lab.UpOptions{})
	free := labtest.Must(lab.FreeBase())(t)
	_, registryPort, _ := net.SplitHostPort(up.Registry)
	tests := map[string]struct {
		args []string
		want []string
	}{
		"the same data directory": {
			[]string{"--data-dir", up.DataDir, "--listen-base", strconv.Itoa(free)},
			[]string{up.DataDir, fmt.Sprintf("in use by kiln up (pid %d)", up.PID()), "--data-dir"},
		},
		"the same ports": {
			[]string{"--data-dir", filepath.Join(l.Dir, "other"), "--listen-base", strconv.Itoa(up.Base)},
			[]string{up.Builder, fmt.Sprintf("in use by pid %d (", up.PID()), "kiln up", "--listen-base"},
		},
		"the registry's port": {
			[]string{"--data-dir", filepath.Join(l.Dir, "other"), "--listen-base", strconv.Itoa(free), "--registry-listen", "127.0.0.1:" + registryPort},
			[]string{"127.0.0.1:" + registryPort, fmt.Sprintf("in use by pid %d (", daemons(t, up.DataDir)["registry"]), "--registry-listen"},
		},
	}
	for name, test := range tests {
		for _, detach := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, detach=%v", name, detach), func(t *testing.T) {
				args := append([]string{"up"}, test.args...)
				out, err := kilnCommand(t, "", append(args, "--detach="+strconv.FormatBool(detach))...)
				if err == nil {
					t.Fatalf("it succeeded:\n%s", out.Stdout)
				}
				if lines := strings.Count(strings.TrimSpace(out.Stderr), "\n") + 1; lines != 1 {
					t.Errorf("%d lines:\n%s", lines, out.Stderr)
				}
				for _, want := range test.want {
					if !strings.Contains(out.Stderr, want) {
						t.Errorf("no %q in: %s", want, out.Stderr)
					}
				}
			})
		}
	}
	if got := daemons(t, up.DataDir); len(got) != 3 {
		t.Errorf("the first one has %v", got)
	}
}

// A daemon that dies is started again, with a line that says so, and leaves
// nothing of what it was doing; and a signal ends it all in the middle of a build.
func TestUpRestartsDaemons(t *testing.T) {
	l := labtest.New(t)
	up := startUp(t, l, lab.UpOptions{})
	for _, name := range []string{"buildkitd", "registry"} {
		build := hangingBuild(t, l, up)
		pid := daemons(t, up.DataDir)[name]
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		line := name + " ended (signal: killed); starting it again in "
		labtest.Eventually(t, 10*time.Second, "the line about it", func() bool { return strings.Contains(up.Output(), line) })
		labtest.Eventually(t, 20*time.Second, name+" runs again", func() bool { return !slices.Contains([]int{0, pid}, daemons(t, up.DataDir)[name]) })
		if name == "buildkitd" {
			<-build.Done()
			labtest.Eventually(t, 20*time.Second, "the containers go", func() bool { return len(labtest.Must(lab.Containers(up.DataDir))(t)) == 0 })
		}
		// Through the builder: it serves again, and not only by what it says.
		workers := lab.Command{Path: labtest.Must(lab.Bin("buildctl"))(t), Args: []string{"--addr", "tcp://" + up.Builder, "debug", "workers"}}
		labtest.Eventually(t, 30*time.Second, "the builder builds again", func() bool {
			_, err := lab.Exec(labtest.Context(t, 10*time.Second), workers)
			return err == nil
		})
		if err := lab.WaitServing(labtest.Context(t, time.Minute), up.Process, up.Janitor); err != nil {
			t.Error(err)
		}
	}

	if len(labtest.Must(lab.Containers(up.DataDir))(t)) == 0 {
		t.Fatal("no build is running: the end would prove nothing")
	}
	if err := up.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, 10*time.Second, "it says so", func() bool { return strings.Contains(up.Output(), "stopping") })
	if err := up.Signal(syscall.SIGINT); err != nil { // The second one hurries.
		t.Fatal(err)
	}
	select {
	case <-up.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("it takes its time, though it was told to hurry")
	}
	if code := up.ExitCode(); code != 0 {
		t.Errorf("exit code %d\n%s", code, up.Output())
	}
	nothingLeft(t, up)
}

// The daemons of a kiln up that is killed die with it, and the next one removes
// what their builds have left.
func TestUpKilled(t *testing.T) {
	l := labtest.New(t)
	up := startUp(t, l, lab.UpOptions{})
	hangingBuild(t, l, up)
	if err := up.Kill(); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, 10*time.Second, "its daemons end", func() bool { return len(daemons(t, up.DataDir)) == 0 })
	if len(labtest.Must(lab.Mounts(up.DataDir))(t)) == 0 || len(labtest.Must(lab.Containers(up.DataDir))(t)) == 0 {
		t.Fatal("nothing is left: the next start would prove nothing")
	}

	again := startUp(t, l, lab.UpOptions{DataDir: up.DataDir})
	if mounts := labtest.Must(lab.Mounts(up.DataDir))(t); len(mounts) > 0 {
		t.Errorf("still mounted: %v", mounts)
	}
	if containers := labtest.Must(lab.Containers(up.DataDir))(t); len(containers) > 0 {
		t.Errorf("containers left: %v", containers)
	}
	if err := again.Stop(labtest.Context(t, time.Minute)); err != nil {
		t.Error(err)
	}
	nothingLeft(t, again)
}

// --detach comes back when all serves, kiln down when nothing is left.
func TestUpDetached(t *testing.T) {
	l := labtest.New(t)
	// So deep that the daemon's socket does not fit there.
	dataDir := filepath.Join(l.Dir, strings.Repeat("deep-", 20))
	base := labtest.Must(lab.FreeBase())(t)
	l.OnClose("kiln up", func(ctx context.Context) error { return lab.Down(ctx, dataDir) })
	out, err := kilnCommand(t, l.Dir, "up", "--detach", "--step-network", "host", "--data-dir", dataDir, "--listen-base", strconv.Itoa(base))
	if err != nil {
		t.Fatal(err)
	}
	_, socket, _ := strings.Cut(out.Stdout, "unix://")
	socket, _, _ = strings.Cut(socket, "\n")
	if !strings.Contains(out.Stdout, "kiln down --data-dir "+dataDir) || len(socket) > 100 {
		t.Errorf("it says:\n%s", out.Stdout)
	}
	builder := net.JoinHostPort("127.0.0.1", strconv.Itoa(base))
	if err := lab.WaitServing(labtest.Context(t, time.Second), nil, builder); err != nil {
		t.Errorf("it came back early: %v", err)
	}
	if _, err := os.Stat(socket); err != nil {
		t.Error(err)
	}

	out, err = kilnCommand(t, l.Dir, "down", "--data-dir", dataDir)
	if err != nil || !strings.Contains(out.Stdout, "has stopped") {
		t.Errorf("kiln down: %v\n%s", err, out.Stdout)
	}
	if left := daemons(t, dataDir); len(left) > 0 {
		t.Errorf("kiln down came back, and there is %v", left)
	}
	nothingLeft(t, &lab.Up{DataDir: dataDir, Base: base})
	if _, err := os.Stat(filepath.Dir(socket)); !os.IsNotExist(err) {
		t.Errorf("%s is left (%v)", filepath.Dir(socket), err)
	}
	out, err = kilnCommand(t, l.Dir, "down", "--data-dir", dataDir)
	if err != nil || !strings.Contains(out.Stdout, "no kiln up is running") {
		t.Errorf("the second kiln down: %v\n%s", err, out.Stdout)
	}
}

// A daemon that cannot start is an error that shows why, at once.
func TestUpDaemonDoesNotStart(t *testing.T) {
	l := labtest.New(t)
	broken := filepath.Join(l.Dir, "broken")
	if err := os.WriteFile(broken, []byte("#!/bin/sh\necho the reason >&2\nexit 7\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	base := labtest.Must(lab.FreeBase())(t)
	dataDir := filepath.Join(l.Dir, "up")
	out, err := kilnCommand(t, "", "up", "--data-dir", dataDir, "--listen-base", strconv.Itoa(base), "--buildkitd", broken, "--start-timeout", "30s", "--step-network", "host")
	if err == nil || !strings.Contains(out.Stderr, "buildkitd did not start: exit status 7") || !strings.Contains(out.Stdout, "the reason") {
		t.Errorf("%v\n%s%s", err, out.Stdout, out.Stderr)
	}
	nothingLeft(t, &lab.Up{DataDir: dataDir, Base: base})
}
