package e2e_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

// finding is one of what `kiln debug --format json` prints.
type finding struct {
	Check, State, Message, Remedy string
	Evidence                      []string
	Fixed                         bool
}

func readFindings(t *testing.T, text string) (all []finding) {
	t.Helper()
	var report struct{ Findings []finding }
	if err := json.Unmarshal([]byte(text), &report); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return report.Findings
}

// found reports whether a check has a finding of a state with a text; with evidence and a
// remedy, unless it is well.
func found(all []finding, check, state, text string) bool {
	return slices.ContainsFunc(all, func(f finding) bool {
		return f.Check == check && f.State == state && strings.Contains(f.Message+strings.Join(f.Evidence, " "), text) &&
			(state == "ok" || state == "unknown" || f.Remedy != "" && len(f.Evidence) > 0)
	})
}

// On a machine with the whole stack, each thing that the guide's troubleshooting knows, and
// more, is broken for real: kiln debug finds it, says what it saw and what mends it. What is safe to mend
// it mends.
func TestS14_DebugFindsWhatIsBroken(t *testing.T) {
	m := labtest.Must(labtest.New(t).StartMachine(labtest.Context(t, time.Minute)))(t)
	run := func(script string) string {
		t.Helper()
		return labtest.Must(m.Exec(labtest.Context(t, 2*time.Minute), script))(t).Stdout
	}
	debug := func(flags string) []finding {
		t.Helper()
		out, _ := m.Exec(labtest.Context(t, 2*time.Minute), "kiln debug --format json "+flags) // it ends with 1 when something fails
		return readFindings(t, out.Stdout)
	}
	run("deploy/scripts/install.sh install && systemctl start buildkit kiln-registry kiln-builder kiln-cachemanager kiln-janitor && useradd stranger && useradd --groups buildkit dev")
	t.Cleanup(func() {
		if t.Failed() {
			out, err := m.Exec(context.Background(), "kiln debug 2>&1 || true")
			t.Log(out.Stdout, err)
		}
	})
	labtest.Eventually(t, 30*time.Second, "a stack that is well", func() bool {
		return !slices.ContainsFunc(debug(""), func(f finding) bool { return f.State == "fail" })
	})
	for _, f := range debug("") {
		if f.State == "warn" {
			t.Errorf("a stack that is well has %+v", f)
		}
	}
	run("kiln debug")                   // and ends with 0
	run("runuser -u dev -- kiln debug") // also for who is in the group
	run("kiln workers | grep -w overlayfs")
	if !found(debug(""), "emulators", "unknown", "no emulator") {
		t.Error("emulators are found where there are none")
	}
	run("mkdir /tmp/q && ln -s $(command -v qemu-aarch64-static) /tmp/q/buildkit-qemu-aarch64 && PATH=/tmp/q:$PATH kiln debug | grep 'ok  *emulators'")
	ending := base64Of(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificateOf(t, -85*24*time.Hour, 5*24*time.Hour)})))
	expired := base64Of(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificateOf(t, -2*time.Hour, -time.Hour)})))

	for name, c := range map[string]struct {
		breaks, mends, flags, check, state, text string
		fixes                                    bool // --fix mends it
	}{
		"the daemon is down":              {"systemctl stop buildkit buildkit; rm -f /run/buildkit/buildkitd.sock", "systemctl start buildkit", "", "socket", "fail", "is not there", false},
		"the daemon hangs":                {"systemctl kill --kill-who=main --signal STOP buildkit", "systemctl kill --kill-who=main --signal CONT buildkit", "", "daemon", "fail", "does not answer", false},
		"the socket is for all":           {"chmod 666 /run/buildkit/buildkitd.sock", "chmod 660 /run/buildkit/buildkitd.sock", "", "socket", "fail", "as good as root", true},
		"the socket is not for the group": {"chgrp root /run/buildkit/buildkitd.sock", "chgrp buildkit /run/buildkit/buildkitd.sock", "", "socket", "warn", "may not use", true},
		"no group":                        {"sed -i 's/^buildkit:/other:/' /etc/group", "sed -i 's/^other:/buildkit:/' /etc/group", "", "group", "warn", "there is no group", false},
		"the mode of the caches":          {"chmod 755 /var/cache/buildkit-cache", "chmod 2775 /var/cache/buildkit-cache", "", "cache-dir", "fail", "should have 2775", true},
		"the owner of the caches":         {"chown dev:dev /var/cache/buildkit-cache", "chown root:buildkit /var/cache/buildkit-cache", "", "cache-dir", "fail", "should be of root:buildkit", true},
		"a directory in the caches":       {"mkdir -m 755 /var/cache/buildkit-cache/blobs", "chmod 2775 /var/cache/buildkit-cache/blobs", "", "cache-dir", "warn", "cannot write to it", true},
		"the registry is down":            {"systemctl stop kiln-registry", "systemctl start kiln-registry", "", "registry", "fail", "does not answer", false},
		"the builder is down":             {"systemctl stop kiln-builder", "systemctl start kiln-builder", "", "services", "fail", "the builder at", false},
		"the cache manager is down":       {"systemctl stop kiln-cachemanager", "systemctl start kiln-cachemanager", "", "services", "fail", "the cache manager at", false},
		"the janitor is down":             {"systemctl stop kiln-janitor", "systemctl start kiln-janitor", "", "services", "fail", "the janitor at", false},
		"a registry in plain HTTP": {
			"ip addr add 10.99.0.1/32 dev lo && systemd-run --unit other --setenv REGISTRY_HTTP_ADDR=10.99.0.1:5000 --setenv REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY=/tmp/r registry serve /etc/kiln/registry.yml && sleep 1",
			"systemctl stop other && ip addr del 10.99.0.1/32 dev lo", "--registry 10.99.0.1:5000", "registry-protocol", "fail", "is not told that it may", false,
		},
		"a registry with certificates": {
			"kiln certs init --dir /tmp/p && kiln certs issue r --host localhost --dir /tmp/p && systemd-run --unit other --setenv REGISTRY_HTTP_ADDR=localhost:5443 --setenv REGISTRY_HTTP_TLS_CERTIFICATE=/tmp/p/r.crt --setenv REGISTRY_HTTP_TLS_KEY=/tmp/p/r.key --setenv REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY=/tmp/r2 registry serve /etc/kiln/registry.yml && sleep 1",
			"systemctl stop other && rm -r /tmp/p", "--registry localhost:5443 --registry-ca /tmp/p/ca.crt", "registry-protocol", "fail", "will speak plain HTTP", false,
		},
		"a certificate that ends soon": {"mkdir /tmp/c && echo " + ending + " | base64 -d >/tmp/c/x.crt", "rm -r /tmp/c", "--certs-dir /tmp/c", "certificates", "warn", "ends in 4 days", false},
		"a certificate that has ended": {"mkdir /tmp/c && echo " + expired + " | base64 -d >/tmp/c/old.crt", "rm -r /tmp/c", "--certs-dir /tmp/c", "certificates", "fail", "has ended", false},
		"a full disk":                  {"mkdir /tmp/d && mount -t tmpfs -o size=20m tmpfs /tmp/d && head -c 20m /dev/zero >/tmp/d/x || true", "umount /tmp/d && rmdir /tmp/d", "--daemon-root /tmp/d", "disk", "fail", "0.0 % of the bytes", false},
		"no cgroups":                   {"mount -t tmpfs tmpfs /sys/fs/cgroup", "umount /sys/fs/cgroup", "", "cgroup", "fail", "not mounted", false},
		"no overlayfs":                 {"grep -v overlay /proc/filesystems >/tmp/fs && mount --bind /tmp/fs /proc/filesystems", "umount /proc/filesystems", "", "overlay", "fail", "no overlayfs", false},
		"no runc":                      {"mount --bind /dev/null $(command -v runc)", "umount $(command -v runc)", "", "runc", "fail", "is not installed", false},
		"a broken configuration":       {"cp /etc/buildkit/buildkitd.toml /tmp/b && echo '[[[' >>/etc/buildkit/buildkitd.toml", "cp /tmp/b /etc/buildkit/buildkitd.toml", "", "registry-protocol", "fail", "no TOML", false},
	} {
		run(c.breaks)
		if all := debug(c.flags); !found(all, c.check, c.state, c.text) {
			t.Errorf("%s: %+v", name, all)
		}
		if c.fixes {
			if all := debug(c.flags + " --fix"); !slices.ContainsFunc(all, func(f finding) bool { return f.Check == c.check && f.Fixed }) {
				t.Errorf("%s is not mended: %+v", name, all)
			}
			if all := debug(c.flags); found(all, c.check, c.state, c.text) {
				t.Errorf("%s is still there after --fix", name)
			}
		}
		run(c.mends)
	}
	if out, err := m.Exec(labtest.Context(t, time.Minute), "runuser -u stranger -- kiln debug --format json"); err == nil || !found(readFindings(t, out.Stdout), "group", "fail", "permission denied") ||
		!found(readFindings(t, out.Stdout), "socket", "fail", "may not get to") {
		t.Errorf("who is not in the group is told %s", out.Stdout)
	}

	secret := canarySecret(t)
	run("systemd-cat echo 'password=" + secret + "'; systemd-run --unit kiln-canary --wait echo 'Authorization: Bearer " + secret + "'; echo '# token " + secret + "' >>/etc/kiln/builder.yaml")
	labtest.Eventually(t, 30*time.Second, "a stack that is well again", func() bool {
		_, err := m.Exec(labtest.Context(t, time.Minute), "kiln debug --bundle=/tmp/b.tgz")
		return err == nil
	})
	list := run("tar -tzf /tmp/b.tgz")
	for _, want := range []string{"report.json", "files/etc/kiln/builder.yaml", "files/etc/buildkit/buildkitd.toml", "commands/journal.txt", "metrics/127.0.0.1:9461.txt"} {
		if !strings.Contains(list, want) {
			t.Errorf("the bundle lacks %s: %s", want, list)
		}
	}
	all := run("tar -xOzf /tmp/b.tgz")
	if strings.Contains(all, secret) || strings.Contains(all, strings.TrimSpace(run("cat /etc/kiln/notifications.secret"))) {
		t.Error("the bundle holds a secret")
	}
	if !strings.Contains(all, "running server on") || strings.TrimSpace(run("stat -c %a /tmp/b.tgz")) != "600" {
		t.Error("the bundle has no logs, or others may read it")
	}
}

// certificateOf is a certificate that holds from and to so long from now.
func certificateOf(t *testing.T, from, to time.Duration) []byte {
	t.Helper()
	s := &secured{dir: t.TempDir()}
	runKiln(t, "certs", "init", "--dir", s.dir)
	return s.holding(t, "old", from, to).Certificate[0]
}

// A clock that is wrong is told by what the registry says of the time.
func TestS14_DebugFindsClockSkew(t *testing.T) {
	s := sharedStack(t)
	proxy := httputil.NewSingleHostReverseProxy(labtest.Must(url.Parse("http://" + s.Registry.Addr))(t))
	proxy.Transport = &http.Transport{DisableKeepAlives: true} // leaves nothing open
	proxy.ModifyResponse = func(res *http.Response) error {
		res.Header.Set("Date", time.Now().Add(-10*time.Minute).UTC().Format(http.TimeFormat))
		return nil
	}
	late := httptest.NewServer(proxy)
	defer late.Close()
	for registry, state := range map[string]string{s.Registry.Addr: "ok", late.Listener.Addr().String(): "fail"} {
		out, _ := s.kiln(t, "debug", "--format", "json", "--registry", registry) // other things are not as it wants them
		if !found(readFindings(t, out.Stdout), "clock", state, "") {
			t.Errorf("%s: %s", state, out.Stdout)
		}
	}
}

// A daemon of a version that Kiln is not held to is told: one that was built to say so.
func TestS14_DebugFindsAnOldDaemon(t *testing.T) {
	l := labtest.New(t)
	bin := filepath.Join(l.Dir, "bin")
	labtest.Must(lab.Exec(labtest.Context(t, 5*time.Minute), lab.Command{
		Path: labtest.Must(exec.LookPath("go"))(t), Dir: labtest.Must(filepath.Abs("../tools/buildkit"))(t), Env: []string{"GOWORK=off", "GOFLAGS="},
		Args: []string{"build", "-ldflags", "-s -w -X github.com/moby/buildkit/version.Version=v0.9.3", "-o", filepath.Join(bin, "buildkitd"), "github.com/moby/buildkit/cmd/buildkitd"},
	}))(t)
	t.Setenv(lab.BinEnv, bin)
	d := labtest.Must(l.StartBuildkitd(labtest.Context(t, time.Minute), lab.BuildkitdOptions{}))(t)
	out, _ := lab.Exec(labtest.Context(t, time.Minute), lab.Command{ // other things are not there at all
		Path: labtest.Must(lab.Bin("kiln"))(t), Args: []string{"debug", "--format", "json", "--daemon", d.Addr},
	})
	if !found(readFindings(t, out.Stdout), "daemon", "warn", "its version is v0.9.3") {
		t.Errorf("%s", out.Stdout)
	}
}

// Why a build did not use the cache: a changed line, changed files, a changed argument, a result
// that is gone, a cache in the registry that is not there; and one that used it.
func TestS14_DebugSaysWhyTheCacheWasNotUsed(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	dir := s.dir(t, map[string]string{"a.txt": "1"})
	write := func(name, text string) {
		labtest.Write(t, dir, map[string]string{name: text})
	}
	text := "FROM " + s.base + "\nARG WHO\nRUN echo one >/one\nCOPY a.txt /\nRUN echo \"$WHO\" >/two\n"
	write("Dockerfile", text)
	build := func(args ...string) {
		t.Helper()
		labtest.Must(s.kiln(t, append([]string{"build", dir, dir, "why:1", "--progress", "quiet"}, args...)...))(t)
	}
	says := func(state, want string) {
		t.Helper()
		out, _ := s.kiln(t, "debug", "--format", "json", "--project", "why", "--registry", s.Registry.Addr)
		all := slices.DeleteFunc(readFindings(t, out.Stdout), func(f finding) bool { return f.Check != "cache-use" })
		if !slices.ContainsFunc(all, func(f finding) bool { return f.State == state && strings.Contains(f.Message, want) }) {
			t.Errorf("want %s %q: %+v", state, want, all)
		}
	}
	build("--build-arg", "WHO=a")
	says("ok", "is the first of its project")
	build("--build-arg", "WHO=a")
	says("ok", "took all of its steps from the cache")
	write("a.txt", "2")
	build("--build-arg", "WHO=a")
	says("ok", "the files that it copies have changed")
	write("Dockerfile", strings.Replace(text, "echo one", "echo uno", 1))
	build("--build-arg", "WHO=a")
	says("ok", "that line of the Dockerfile has changed")
	build("--build-arg", "WHO=b")
	says("ok", "has changed")
	labtest.Must(lab.Exec(labtest.Context(t, time.Minute), lab.Command{Path: labtest.Must(lab.Bin("buildctl"))(t), Args: []string{"--addr", s.Buildkitd.Addr, "prune", "--all"}}))(t)
	build("--build-arg", "WHO=b")
	says("warn", "its result is no longer in the cache")
	labtest.Must(s.kiln(t, "build-registry", dir, dir, "why:1", "--progress", "quiet", "--build-arg", "WHO=b", "--cache-repository", s.Registry.Addr+"/cache", "--cache-scope", "never-written"))(t)
	says("warn", "which is not there")
}

// The wrapper of old: its commands with their arguments, and what it does by itself.
func TestS8_Wrapper(t *testing.T) {
	s := sharedStack(t)
	script := labtest.Must(filepath.Abs("../deploy/scripts/buildkit-wrapper-cached.sh"))(t)
	caches := filepath.Join(t.TempDir(), "caches")
	if err := os.Mkdir(caches, 0o750); err != nil {
		t.Fatal(err)
	}
	wrapper := func(args ...string) (lab.Output, error) {
		return lab.Exec(labtest.Context(t, 2*time.Minute), lab.Command{Path: script, Args: args, Env: []string{
			"KILN=" + labtest.Must(lab.Bin("kiln"))(t), "KILN_BUILDER=" + s.Builder.Addr, "KILN_CACHE_DIR=" + caches, "KILN_CACHE_REPOSITORY=" + s.Registry.Addr + "/cache", "DOCKER_HOST=unix:///nonexistent",
		}})
	}
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\nRUN date >/date\n"})
	labtest.Must(wrapper("build", dir, dir, "wrapped:1"))(t)
	if len(filesBelow(t, caches)) < 3 {
		t.Error("build has left nothing in the directory of caches")
	}
	labtest.Must(wrapper("build-registry", dir, dir, s.ref("wrapped")))(t)
	if file(t, s.ref("wrapped"), "", "/date") == "" {
		t.Error("build-registry has not pushed")
	}
	if out := labtest.Must(wrapper("workers"))(t); !strings.Contains(out.Stdout, "overlayfs") {
		t.Errorf("workers: %s", out.Stdout)
	}
	if out, err := wrapper("debug"); err == nil && out.Stdout == "" || !strings.Contains(out.Stdout, "cache-use") {
		t.Errorf("debug: %v %s", err, out.Stdout)
	}
	for want, args := range map[string][]string{
		"needs CONTEXT_DIR, DOCKERFILE_DIR and IMAGE": {"build", dir}, "there is no command": {"bild"}, "cannot reach the cache manager": {"clean-cache"},
	} {
		out, err := wrapper(args...)
		if err == nil || !strings.Contains(out.Stderr, want) {
			t.Errorf("%v: %v", args, err)
		}
	}
}
