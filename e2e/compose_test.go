package e2e_test

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

// rootfs makes the root directory of an image.
const rootfs = `
rootfs() { # DIR BINARIES...: a root with busybox, and the binaries with the libraries that they need
	local root=$1 binary lib
	shift
	mkdir -p "$root/bin" "$root/usr/bin" "$root/etc" "$root/tmp" "$root/var/lib/registry" "$root/run" "$root/lib64"
	chmod 1777 "$root/tmp"
	cp "$(command -v busybox)" "$root/bin/busybox"
	for binary in sh chown env wget cat ls mkdir; do ln -s busybox "$root/bin/$binary"; done
	echo root:x:0:0::/root:/bin/sh >"$root/etc/passwd"
	cp /etc/ssl/certs/ca-certificates.crt "$root/etc/" || true
	for binary; do
		cp "$binary" "$root/usr/bin/"
		for lib in $(ldd "$binary" | grep -o '/[^ ]*'); do
			mkdir -p "$root$(dirname "$lib")"
			cp -L "$lib" "$root$lib"
		done
	done
}
`

// importImages gives the machine's Docker Engine the public images of the core that cannot be
// pulled here: of the same names, made from the tools that are pinned.
const importImages = rootfs + `
rootfs /tmp/buildkit bin/buildkitd bin/buildctl "$(command -v runc)" "$(command -v iptables)" "$(command -v ip6tables)" /usr/lib/cni/{bridge,loopback,host-local,firewall}
for plugin in bridge loopback host-local firewall; do mv /tmp/buildkit/usr/bin/$plugin /tmp/buildkit/usr/bin/buildkit-cni-$plugin; done
cp -rL --parents /usr/lib/*/xtables /tmp/buildkit/
tar -C /tmp/buildkit -c . | docker import --change 'ENTRYPOINT ["buildkitd"]' --change 'ENV PATH=/usr/bin:/bin' - moby/buildkit:v0.34.2 >/dev/null
rootfs /tmp/registry bin/registry
tar -C /tmp/registry -c . | docker import --change 'ENTRYPOINT ["registry"]' --change 'ENV PATH=/usr/bin:/bin' - registry:3.1.2 >/dev/null
`

// startDocker starts the machine's Docker Engine. A host may have no CAP_SYS_RESOURCE to give,
// and then no privileged container starts: there the engine is told not to give it.
const startDocker = `
mount --mkdir -t tmpfs tmpfs /var/lib/docker
flags=
if ! (( 0x$(awk '/CapBnd/ { print $2 }' /proc/self/status) >> 24 & 1 )); then
	cat >/usr/local/bin/runc-here <<'EOF'
#!/bin/bash
args=("$@")
for i in "${!args[@]}"; do
	case ${args[i]} in
	--bundle) spec=${args[i + 1]}/config.json ;;
	--process) spec=${args[i + 1]} ;;
	*) continue ;;
	esac
	sed -i 's/"CAP_SYS_RESOURCE",//g; s/,"CAP_SYS_RESOURCE"//g' "$spec"
done
exec runc "$@"
EOF
	chmod +x /usr/local/bin/runc-here
	flags="--add-runtime here=/usr/local/bin/runc-here --default-runtime here"
fi
systemd-run --unit dockerd --property Delegate=yes dockerd $flags
for i in $(seq 100); do docker version >/dev/null 2>&1 && break; sleep 0.2; done
docker version
`

// With a Docker Engine and Compose, the images of the services, which Kiln builds, and the
// core of docker-compose.yml are a stack that is healthy within a minute, builds, prunes, and
// loses nothing when it is taken down and brought up. Nothing is privileged but buildkitd.
func TestS13_ComposeCore(t *testing.T) {
	m := labtest.Must(labtest.New(t).StartMachine(labtest.Context(t, time.Minute)))(t)
	// The machine has this one's files, also what Go has fetched and built.
	var env strings.Builder
	for _, name := range []string{"GOMODCACHE", "GOCACHE", "GOFLAGS", "GOTOOLCHAIN", "GOROOT"} {
		value := labtest.Must(lab.Exec(labtest.Context(t, time.Minute), lab.Command{Path: labtest.Must(exec.LookPath("go"))(t), Args: []string{"env", name}}))(t).Stdout
		fmt.Fprintf(&env, "export %s='%s'\n", name, strings.TrimSpace(value))
	}
	env.WriteString("export PATH=$PATH:$GOROOT/bin:/mnt/bin\n")
	run := func(script string) string {
		t.Helper()
		return labtest.Must(m.Exec(labtest.Context(t, 10*time.Minute), env.String()+script))(t).Stdout
	}
	compose := func(args string) string {
		t.Helper()
		return run("cd /srv/kiln && docker-compose --progress quiet " + args)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, err := m.Exec(context.Background(), "journalctl --no-pager -u dockerd -n 20; cd /srv/kiln && /mnt/bin/docker-compose --profile observe ps --all && /mnt/bin/docker-compose --profile observe logs --tail 20")
			t.Log(out.Stdout, err)
		}
	})
	startOutside(t, m)
	t.Log("public images cannot be pulled here: moby/buildkit and registry are made from the pinned tools, under the same names")
	run(startDocker)
	run(importImages)
	run("VERSION=dev deploy/scripts/images.sh")
	checkImages(t, run)

	run("mkdir /srv/kiln && cp -r docker-compose.yml deploy /srv/kiln/ && rm -rf /srv/kiln/deploy/compose/secrets /srv/kiln/deploy/compose/registry.env && /srv/kiln/deploy/scripts/compose-secrets.sh")
	run("echo KILN_DENY_NETWORK=45.45.45.1/32 >/srv/kiln/.env")
	compose("--profile observe config --quiet")
	compose("up --detach --wait --wait-timeout 60")
	if privileged := run(`for c in $(docker ps -q); do docker inspect -f '{{.HostConfig.Privileged}} {{.Config.User}} {{index .Config.Labels "com.docker.compose.service"}}' $c; done | sort`); privileged !=
		"false 0:0 step-network\nfalse 65532:65532 builder\nfalse 65532:65532 cachemanager\nfalse 65532:65532 janitor\nfalse 65532:65532 registry\ntrue  buildkitd\n" {
		t.Errorf("containers: %s", privileged)
	}
	if name := run("docker inspect -f '{{.State.Health.Status}}' outros-containers-registry"); name != "healthy\n" {
		t.Errorf("outros-containers-registry: %s", name)
	}
	run(`mkdir /srv/app && cp "$(command -v busybox)" /srv/app/busybox && printf 'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox","touch","/made"]\n' >/srv/app/Dockerfile`)
	build := func() outcome {
		t.Helper()
		return readOutcome(t, lab.Output{Stdout: run("kiln build-registry /srv/app /srv/app localhost:5000/web:1 --push --format json --progress quiet")})
	}
	first := build()
	run("docker pull --quiet localhost:5000/web:1 && docker run --rm localhost:5000/web:1 /bin/busybox test -e /made")
	// The wrapper of old loads what it builds into the engine that it finds.
	run("KILN_CACHE_DIR=/srv/caches; mkdir /srv/caches; export KILN_CACHE_DIR; deploy/scripts/buildkit-wrapper-cached.sh build /srv/app /srv/app hello:1 && docker run --rm hello:1 /bin/busybox test -e /made && test -s /srv/caches/index.json")
	if checks := run("kiln janitor check"); strings.Contains(checks, "fail") {
		t.Errorf("the registry: %s", checks)
	}
	// What nothing names goes, and what is named stays.
	run(`digest=$(docker image inspect -f '{{index .RepoDigests 0}}' localhost:5000/web:1) && kiln janitor run --force && kiln cache prune --force && docker image rm $digest localhost:5000/web:1 >/dev/null; docker pull --quiet localhost:5000/web:1`)

	hostileUnderCompose(t, m)

	compose("down")
	compose("up --detach --wait --wait-timeout 60")
	again := build()
	if first.CachedSteps == first.TotalSteps || again.CachedSteps != again.TotalSteps || again.Digest != first.Digest {
		t.Errorf("first %+v, after down and up %+v", first, again)
	}
	if list := run("kiln builds ls --format json"); strings.Count(list, `"project":"web"`) != 2 {
		t.Errorf("the builder remembers %s", list)
	}
	observe(t, run, build)
	compose("--profile observe down --volumes")
}

// hostileUnderCompose holds that a RUN step reaches the internet, and neither the
// machine nor a container of the stack, whatever the address.
func hostileUnderCompose(t *testing.T, m *lab.Machine) {
	t.Helper()
	request := hostile(t, m)
	containers := labtest.Must(m.Exec(labtest.Context(t, time.Minute),
		`for c in $(docker ps -q); do docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}' $c; done`))(t).Stdout
	for _, address := range strings.Fields(containers) {
		for _, port := range []string{"5000", "50051", "50052", "50053", "9461", "9462", "9463"} {
			request.Connect = append(request.Connect, net.JoinHostPort(address, port))
		}
	}
	if len(request.Connect) < 4*7 {
		t.Fatalf("containers have the addresses %s", containers)
	}
	onlyOutside(t, runProbe(t, m, "", request))
}

// importObservers gives the engine the images of the profile observe but for Grafana's, with the
// same entrypoints and users. Jaeger is a distribution of the OpenTelemetry Collector, and its
// binary has all components that collector.yaml names: it stands in for that image, too.
const importObservers = rootfs + `
rootfs /tmp/jaeger bin/jaeger
tar -C /tmp/jaeger -c . | docker import --change 'ENTRYPOINT ["/usr/bin/jaeger"]' --change 'ENV JAEGER_LISTEN_HOST=0.0.0.0' --change 'USER 10001' - jaegertracing/jaeger:2.13.0 >/dev/null
tar -C /tmp/jaeger -c . | docker import --change 'ENTRYPOINT ["/usr/bin/jaeger"]' --change 'USER 10001' - otel/opentelemetry-collector:0.140.0 >/dev/null
rootfs /tmp/prometheus "$(command -v prometheus)"
mkdir -p /tmp/prometheus/prometheus && chown 65534:65534 /tmp/prometheus/prometheus
tar -C /tmp/prometheus -c . | docker import --change 'ENTRYPOINT ["/usr/bin/prometheus"]' --change 'USER 65534' \
	--change 'CMD ["--config.file=/etc/prometheus/prometheus.yml","--storage.tsdb.path=/prometheus"]' - prom/prometheus:v3.8.0 >/dev/null
`

// observe starts the profile observe beside the core: Prometheus scrapes the services and has the
// rules, and the spans of a build are one trace in Jaeger, by way of the collector, which nothing
// but the traces depends on.
func observe(t *testing.T, run func(script string) string, build func() outcome) {
	t.Helper()
	t.Log("Grafana's image cannot be pulled here, nor made: it is left out; see TestS9_DashboardsAreGrafanas")
	run(importObservers)
	run(`cd /srv/kiln && printf 'OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317\nOTEL_TRACES_EXPORTER=otlp\n' >>.env &&
docker-compose --progress quiet --profile observe up --detach --wait --wait-timeout 60 $(docker-compose --profile observe config --services | grep -vxF grafana)`)
	build()
	// within waits up to a minute for a page that has all of some lines.
	const within = `within() { local url=$1 page text missing; shift; for i in $(seq 120); do page=$(busybox wget -qO- "$url"); missing=
	for text; do grep -qF -- "$text" <<<"$page" || missing=$text; done; [ -n "$missing" ] || return 0; sleep 0.5; done; echo "$url lacks $missing: $page" >&2; return 1; }
`
	run(within + `within http://127.0.0.1:16686/api/services '"kiln-builder"' '"buildkitd"'`)
	// Each of these traces has a span of buildkitd; one of the builder in them is of the same trace.
	run(within + `within 'http://127.0.0.1:16686/api/traces?service=buildkitd&limit=200' '"serviceName":"kiln-builder"'`)
	for _, job := range []string{"kiln-builder", "kiln-cachemanager", "kiln-janitor"} {
		run(within + `within 'http://127.0.0.1:9090/api/v1/query?query=up%7Bjob%3D%22` + job + `%22%7D' ',"1"]'`)
	}
	run(within + `within http://127.0.0.1:9090/api/v1/rules kiln.alerts.yml kiln.recording.yml '"health":"ok"'; ! grep -F '"health":"err"' <<<"$(busybox wget -qO- http://127.0.0.1:9090/api/v1/rules)"`)

	// With the collector away, builds go on, and buildkitd is as healthy as its check says.
	run("cd /srv/kiln && docker-compose --progress quiet --profile observe stop collector")
	build()
	run(`id=$(cd /srv/kiln && docker-compose ps --quiet buildkitd) && timeout 5 docker exec "$id" $(docker inspect -f '{{join (slice .Config.Healthcheck.Test 1) " "}}' "$id")`)
}

// checkImages holds that the images of the services are small, labelled and for nobody's
// user, and start.
func checkImages(t *testing.T, run func(string) string) {
	t.Helper()
	for _, name := range []string{"kiln-builder", "kiln-cachemanager", "kiln-janitor"} {
		got := run(`docker image inspect -f '{{.Config.User}} {{len .RootFS.Layers}} {{index .Config.Labels "org.opencontainers.image.title"}} {{index .Config.Labels "org.opencontainers.image.version"}}' kiln/` + name + ":dev")
		if !strings.HasPrefix(got, "65532:65532 ") || !strings.HasSuffix(got, " "+name+" dev\n") {
			t.Errorf("%s: %s", name, got)
		}
		if size := run("docker image inspect -f '{{.Size}}' kiln/" + name + ":dev"); len(strings.TrimSpace(size)) > len("99999999") {
			t.Errorf("%s has %s bytes", name, size)
		}
		if version := run("docker run --rm kiln/" + name + ":dev --version"); version != name+" dev\n" {
			t.Errorf("%s says %s", name, version)
		}
	}
}
