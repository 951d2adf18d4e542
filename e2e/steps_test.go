package e2e_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

// probeRequest and probeReport are those of e2e/cmd/stepprobe.
type probeRequest struct {
	Hosts    []string `json:"hosts"`
	UDP      []string `json:"udp"`
	Abstract []string `json:"abstract"`
	Connect  []string `json:"connect"`
	Name     string   `json:"name"`
	Web      string   `json:"web"`
}

type probeReport struct {
	Gateway  string   `json:"gateway"`
	Tried    int      `json:"tried"`
	Reached  []string `json:"reached"`
	Resolved string   `json:"resolved"`
	Read     string   `json:"read"`
}

// The internet of the tests, in a network namespace beside a machine: a web server
// with a public address, and a name server and another web server with private ones.
// The machine itself serves, too, on all its addresses.
const makeOutside = `
cp "$PROBE" /usr/local/bin/stepprobe
ip netns add outside
ip link add outside0 type veth peer name inside0 netns outside
ip -n outside link set lo up
ip -n outside address add 45.45.45.45/24 dev inside0
ip -n outside address add 10.99.0.53/24 dev inside0
ip -n outside address add 169.254.169.254/32 dev inside0
ip -n outside link set inside0 up
ip address add 45.45.45.1/24 dev outside0
ip address add 10.99.0.1/24 dev outside0
ip link set outside0 up
ip route add default via 45.45.45.45
umount /etc/resolv.conf 2>/dev/null || true
rm -f /etc/resolv.conf
echo nameserver 10.99.0.53 >/etc/resolv.conf
systemd-run --unit outside --property NetworkNamespacePath=/run/netns/outside stepprobe serve 45.45.45.45
systemd-run --unit inside stepprobe serve none
for i in $(seq 100); do ip netns exec outside bash -c 'exec 3<>/dev/tcp/45.45.45.45/80' 2>/dev/null && break; sleep 0.1; done
`

// startOutside makes the internet of a machine.
func startOutside(t *testing.T, m *lab.Machine) {
	t.Helper()
	dir := t.TempDir()
	labtest.Must(lab.Exec(labtest.Context(t, 2*time.Minute), lab.Command{
		Path: "/usr/bin/env", Args: []string{"go", "build", "-o", filepath.Join(dir, "stepprobe"), "./cmd/stepprobe"},
		Env: []string{"CGO_ENABLED=0"},
	}))(t)
	// The machine has its own /tmp; the repository is in both.
	shared := filepath.Join(labtest.Must(lab.RepoRoot())(t), "bin", "stepprobe-"+unique())
	if err := os.Rename(filepath.Join(dir, "stepprobe"), shared); err != nil {
		data := labtest.Must(os.ReadFile(filepath.Join(dir, "stepprobe")))(t)
		if err := os.WriteFile(shared, data, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = os.Remove(shared) })
	labtest.Must(m.Exec(labtest.Context(t, time.Minute), "PROBE=/mnt/bin/"+filepath.Base(shared)+"\n"+makeOutside))(t)
}

// runProbe builds a Dockerfile whose RUN step tries what a request says.
func runProbe(t *testing.T, m *lab.Machine, flags string, request probeRequest) probeReport {
	t.Helper()
	text := labtest.Must(json.Marshal(request))(t)
	out := labtest.Must(m.Exec(labtest.Context(t, 5*time.Minute), `
mkdir -p /srv/hostile
cp /usr/local/bin/stepprobe /srv/hostile/
cat >/srv/hostile/request.json <<'END'
`+string(text)+`
END
printf 'FROM scratch\nCOPY . /\nRUN ["/stepprobe","try","/request.json"]\n# %s\n' `+unique()+` >/srv/hostile/Dockerfile
/mnt/bin/kiln build --progress plain --no-cache `+flags+` /srv/hostile /srv/hostile hostile:1 2>&1`))(t)
	_, line, found := strings.Cut(out.Stdout, "REPORT ")
	line, _, _ = strings.Cut(line, "\n")
	var report probeReport
	if err := json.Unmarshal([]byte(line), &report); !found || err != nil {
		t.Fatalf("no report: %v\n%s", err, out.Stdout)
	}
	return report
}

// hostAddresses lists the IPv4 addresses of a machine.
func hostAddresses(t *testing.T, m *lab.Machine) []string {
	t.Helper()
	return strings.Fields(labtest.Must(m.Exec(labtest.Context(t, time.Minute),
		`ip -4 -o address show | awk '{ sub("/.*", "", $4); print $4 }'`))(t).Stdout)
}

// hostile is the request of a step that tries all that it must not reach.
func hostile(t *testing.T, m *lab.Machine) probeRequest {
	t.Helper()
	return probeRequest{
		Hosts:    append(hostAddresses(t, m), "::1"),
		UDP:      []string{"45.45.45.1:9999", "10.99.0.1:9999", "10.99.0.53:9999"},
		Abstract: []string{"stepprobe"},
		Connect:  []string{"10.99.0.53:80", "169.254.169.254:80"},
		Name:     "outside.example.org", Web: "http://outside.example.org/",
	}
}

// onlyOutside fails the test when a step reached more than the internet and its name server.
func onlyOutside(t *testing.T, report probeReport) {
	t.Helper()
	if want := []string{report.Gateway + ":53"}; !slices.Equal(report.Reached, want) {
		t.Errorf("a step reached %v, want %v", report.Reached, want)
	}
	if report.Tried < 4*65535 {
		t.Errorf("it tried %d ports", report.Tried)
	}
	if report.Resolved != "45.45.45.45" || report.Read != "outside" {
		t.Errorf("the internet: name %q, page %q", report.Resolved, report.Read)
	}
}

// startUpOnMachine starts kiln up, with the arguments UP_ARGS, and waits until it serves.
const startUpOnMachine = `
since=$(date +%s)
systemd-run --quiet --unit kiln-up --property KillMode=mixed --setenv PATH="$PATH" /mnt/bin/kiln up --data-dir /var/lib/kiln --allow-root /srv $UP_ARGS
for i in $(seq 600); do
	! journalctl --no-pager --since "@$since" -u kiln-up | grep -q 'Ctrl-C stops it' || exit 0
	systemctl is-active --quiet kiln-up || break
	sleep 0.1
done
journalctl --no-pager -u kiln-up >&2
exit 1
`

// A RUN step under kiln up reaches the internet and its name server, and nothing of
// the host: no port on any of its addresses, no abstract socket, no private network,
// no metadata service. --allow-network opens what it names, and nothing else.
func TestUp_StepsReachTheInternetAndNothingOfTheHost(t *testing.T) {
	m := labtest.Must(labtest.New(t).StartMachine(labtest.Context(t, time.Minute)))(t)
	startOutside(t, m)
	run := func(script string) string {
		t.Helper()
		return labtest.Must(m.Exec(labtest.Context(t, 2*time.Minute), script))(t).Stdout
	}
	run("UP_ARGS=\n" + startUpOnMachine)
	request := hostile(t, m)
	onlyOutside(t, runProbe(t, m, "", request))

	// Whoever removes all rules of the host removes these for a moment only.
	run("nft flush ruleset; sleep 3; [[ $(nft list tables) == *'inet kiln_'* ]]")
	request.Hosts = []string{"45.45.45.1"}
	if again := runProbe(t, m, "", request); !slices.Equal(again.Reached, []string{again.Gateway + ":53"}) {
		t.Errorf("after the rules were removed a step reached %v", again.Reached)
	}

	// kill -9 leaves the rules to the steps that may go on; the next start has its own.
	run("systemctl kill --kill-who=all --signal KILL kiln-up; sleep 1; [[ $(nft list tables) == *'inet kiln_'* ]]; systemctl reset-failed kiln-up 2>/dev/null || true; sleep 1")
	run("UP_ARGS='--allow-network 10.99.0.53/32'\n" + startUpOnMachine)
	allowed := runProbe(t, m, "", request)
	want := []string{allowed.Gateway + ":53", "10.99.0.53:80", "udp 10.99.0.53:9999"}
	if !slices.Equal(slices.Sorted(slices.Values(allowed.Reached)), slices.Sorted(slices.Values(want))) || allowed.Read != "outside" {
		t.Errorf("with an allowed network a step reached %v and read %q", allowed.Reached, allowed.Read)
	}

	// The end of kiln up is the end of the network.
	run("systemctl stop kiln-up")
	if left := run("nft list tables | grep kiln_ || true; ip -br link | grep kiln- || true; ls /var/lib/cni/results 2>/dev/null || true"); left != "" {
		t.Errorf("left behind: %s", left)
	}
}
