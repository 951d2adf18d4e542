package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

// exposure is the most that `systemd-analyze security` may find of each unit: 0 is none, 10
// all. buildkitd mounts, and gives steps of builds capabilities.
var exposure = map[string]float64{
	"buildkit.service": 8.7, "kiln-builder.service": 1.7, "kiln-cachemanager.service": 2.0,
	"kiln-janitor.service": 1.7, "kiln-janitor-run.service": 1.7, "kiln-registry.service": 1.7,
	"kiln-step-network.service": 2.5, // it changes the packet filter
}

// make install puts a whole package into DESTDIR, whose units systemd takes and finds as closed
// as the docs say; uninstall takes away all but the configuration, also one that was changed.
func TestS12_InstallIntoAPackage(t *testing.T) {
	root := labtest.Must(lab.RepoRoot())(t)
	dest := t.TempDir()
	install := func(verb string) {
		labtest.Must(lab.Exec(labtest.Context(t, time.Minute), lab.Command{
			Path: filepath.Join(root, "deploy/scripts/install.sh"), Args: []string{verb}, Env: []string{"DESTDIR=" + dest, "PREFIX=/usr/local"},
		}))(t)
	}
	install("install")
	units := filepath.Join(dest, "usr/local/lib/systemd/system")
	found := labtest.Must(filepath.Glob(filepath.Join(units, "*")))(t)
	if len(found) != len(exposure)+1 { // and a timer
		t.Errorf("units %v", found)
	}
	// Where they stand the commands are below DESTDIR.
	here := t.TempDir()
	var services []string
	for _, unit := range found {
		text := string(labtest.Must(os.ReadFile(unit))(t))
		labtest.Write(t, here, map[string]string{filepath.Base(unit): strings.ReplaceAll(text, "=/usr/local/bin/", "="+dest+"/usr/local/bin/")})
	}
	for _, unit := range found {
		file := filepath.Join(here, filepath.Base(unit))
		if strings.HasSuffix(unit, ".service") {
			services = append(services, file)
		}
		out, err := lab.Exec(labtest.Context(t, time.Minute), lab.Command{Path: "/usr/bin/systemd-analyze", Args: []string{"verify", "--man=no", file}})
		if err != nil || strings.TrimSpace(out.Stdout+out.Stderr) != "" {
			t.Errorf("%s: %v%v", file, out, err)
		}
	}
	for _, file := range services {
		out := labtest.Must(lab.Exec(labtest.Context(t, time.Minute), lab.Command{
			Path: "/usr/bin/systemd-analyze", Args: []string{"security", "--offline=true", "--no-pager", "--json=off", file},
		}))(t)
		unit := filepath.Base(file)
		_, line, _ := strings.Cut(out.Stdout, "Overall exposure level for "+unit+": ")
		var level float64
		if _, err := fmt.Sscan(line, &level); err != nil || level <= 0 || level > exposure[unit] {
			t.Errorf("%s has an exposure of %v, at most %v is wanted: %v", unit, level, exposure[unit], err)
		}
	}

	own := filepath.Join(dest, "etc/kiln/janitor.yaml")
	if err := os.WriteFile(own, []byte("keep_age: 24h\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	install("install")
	if text := labtest.Must(os.ReadFile(own))(t); string(text) != "keep_age: 24h\n" {
		t.Errorf("a configuration was overwritten: %s", text)
	}
	install("uninstall")
	var left []string
	for path := range filesBelow(t, dest) {
		left = append(left, path)
	}
	slices.Sort(left)
	if want := []string{"etc/buildkit/buildkitd.toml", "etc/buildkit/cni.conflist", "etc/kiln/builder.yaml", "etc/kiln/cachemanager.yaml", "etc/kiln/janitor.yaml", "etc/kiln/registry.yml"}; !slices.Equal(left, want) {
		t.Errorf("after uninstall there are %v", left)
	}
}

// filesBelow are the sizes of the files below a directory, by their paths.
func filesBelow(t *testing.T, root string) map[string]int64 {
	t.Helper()
	all := map[string]int64{}
	err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			all[strings.TrimPrefix(path, root+"/")] = info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// On a machine with systemd, make install and one systemctl are a whole stack: the services run
// as their own users behind their sandboxes, a member of the group buildkit builds through
// them with the wrapper, each comes back after a kill, the timer's unit does a run, and the
// logs are where the guide looks for them.
func TestS12_UnderSystemd(t *testing.T) {
	m := labtest.Must(labtest.New(t).StartMachine(labtest.Context(t, time.Minute)))(t)
	t.Cleanup(func() {
		if t.Failed() {
			logs, err := m.Exec(context.Background(), "journalctl --no-pager -n 60 -u buildkit -u 'kiln-*'")
			t.Log(logs.Stdout, err)
		}
	})
	run := func(script string) string {
		t.Helper()
		return labtest.Must(m.Exec(labtest.Context(t, 2*time.Minute), script))(t).Stdout
	}
	ready := func(ports ...string) {
		t.Helper()
		for _, port := range ports {
			labtest.Eventually(t, 30*time.Second, "readiness on "+port, func() bool {
				_, err := m.Exec(labtest.Context(t, 10*time.Second), "exec 3<>/dev/tcp/127.0.0.1/"+port+`; printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3; head -1 <&3 | grep -q ' 200 '`)
				return err == nil
			})
		}
	}
	run("deploy/scripts/install.sh install")
	run("systemctl start buildkit kiln-registry kiln-builder kiln-cachemanager kiln-janitor")
	ready("9461", "9462", "9463")

	for unit, user := range map[string]string{
		"buildkit": "root", "kiln-registry": "kiln-registry", "kiln-builder": "kiln", "kiln-cachemanager": "kiln", "kiln-janitor": "kiln-registry",
	} {
		if got := run("stat -c %U /proc/$(systemctl show -p MainPID --value " + unit + ")"); strings.TrimSpace(got) != user {
			t.Errorf("%s runs as %s", unit, got)
		}
	}
	if got := run("stat -c '%U:%G %a' /var/cache/buildkit-cache"); strings.TrimSpace(got) != "root:buildkit 2775" {
		t.Errorf("the directory of caches: %s", got)
	}
	if got := run("stat -c '%G %a' /run/buildkit/buildkitd.sock /run/buildkit"); got != "buildkit 660\nbuildkit 750\n" {
		t.Errorf("the socket and its directory: %s", got)
	}

	run("useradd --create-home --groups buildkit dev && useradd --create-home stranger")
	run(`mkdir /srv/app && cp "$(command -v busybox)" /srv/app/busybox && printf 'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox","touch","/made"]\n' >/srv/app/Dockerfile && chmod -R a+rX /srv/app`)
	for _, command := range []string{"build /srv/app /srv/app web:1", "build-registry /srv/app /srv/app localhost:5000/web:1"} {
		run("runuser -u dev -- /usr/local/bin/buildkit-wrapper-cached.sh " + command)
	}
	if got := run("ls /var/cache/buildkit-cache"); !strings.Contains(got, "index.json") {
		t.Errorf("the cache of type=local has %s", got)
	}
	run("runuser -u dev -- buildctl --addr unix:///run/buildkit/buildkitd.sock debug workers")
	if out, err := m.Exec(labtest.Context(t, time.Minute), "runuser -u stranger -- buildctl --addr unix:///run/buildkit/buildkitd.sock debug workers"); err == nil {
		t.Errorf("who is not in the group reached the daemon: %s", out.Stdout)
	}

	// Steps reach the internet, and nothing of the machine, also while the filter's
	// process is being started again.
	startOutside(t, m)
	request := hostile(t, m)
	onlyOutside(t, runProbe(t, m, "", request))
	run("systemctl kill --kill-who=main --signal KILL kiln-step-network; nft list table inet kiln_kiln0 >/dev/null")
	labtest.Eventually(t, 30*time.Second, "that the filter's process is back", func() bool {
		_, err := m.Exec(labtest.Context(t, 10*time.Second), "systemctl is-active --quiet kiln-step-network && kiln step-network --cni-config /etc/buildkit/cni.conflist --check")
		return err == nil
	})

	// What the registry holds the janitor sees and, in a run by the timer's unit, keeps.
	checkRegistryBySystemd(t, run("kiln janitor check --format json"))
	for _, c := range [][2]string{{"start", "0\n"}, {"stop", "1\n"}} { // of the service, and the runs then
		run("systemctl " + c[0] + " kiln-janitor && systemctl start kiln-janitor-run.service")
		if got := run("journalctl --no-pager -u kiln-janitor-run | grep -c SUCCEEDED || true"); got != c[1] {
			t.Errorf("runs after %s of the service: %s", c[0], got)
		}
	}
	run("systemctl start kiln-janitor")
	run("systemctl start kiln-janitor-run.timer && systemctl list-timers --no-pager kiln-janitor-run.timer | grep kiln-janitor-run")

	// Each comes back, and with them the build.
	run("for unit in buildkit kiln-registry kiln-builder kiln-cachemanager kiln-janitor; do systemctl kill --kill-who=main --signal KILL $unit; done")
	labtest.Eventually(t, 30*time.Second, "that all are back", func() bool {
		_, err := m.Exec(labtest.Context(t, 10*time.Second), "systemctl is-active --quiet buildkit kiln-registry kiln-builder kiln-cachemanager kiln-janitor")
		return err == nil
	})
	ready("9461", "9462", "9463")
	run("runuser -u dev -- kiln build-registry /srv/app /srv/app localhost:5000/web:2 --push")
	if got := run("journalctl --no-pager -u buildkit"); !strings.Contains(got, "running server on /run/buildkit/buildkitd.sock") {
		t.Errorf("journalctl -u buildkit: %s", got)
	}
	secret := strings.TrimSpace(run("cat /etc/kiln/notifications.secret"))
	if logs := run("journalctl --no-pager"); len(secret) != 64 || strings.Contains(logs, secret) {
		t.Errorf("the secret of the notifications is in the journal, or there is none: %q", secret)
	}
	run("systemctl stop buildkit kiln-step-network kiln-registry kiln-builder kiln-cachemanager kiln-janitor")
	if left := run("nft list tables | grep kiln_ || true; ip -br link | grep kiln0 || true"); left != "" {
		t.Errorf("the steps' network is left: %s", left)
	}
	run("deploy/scripts/install.sh uninstall && ! command -v kiln && test -s /etc/kiln/builder.yaml")
}

// checkRegistryBySystemd holds that the registry is well in each way.
func checkRegistryBySystemd(t *testing.T, text string) {
	t.Helper()
	var report struct {
		Checks []struct{ Name, State, Message string }
	}
	if err := json.Unmarshal([]byte(text), &report); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	states := map[string]string{}
	for _, c := range report.Checks {
		if c.State != "CHECK_STATE_OK" {
			t.Errorf("%s: %s %s", c.Name, c.State, c.Message)
		}
		states[c.Name] = c.State
	}
	if len(states) < 6 {
		t.Errorf("checks %v", slices.Sorted(maps.Keys(states)))
	}
}
