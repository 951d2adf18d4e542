package e2e_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc/codes"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
)

// A step reads a secret, by file and by variable; what it writes of it is hidden,
// also when a line of it comes in pieces.
func TestFieldSecrets(t *testing.T) {
	s := sharedStack(t)
	value := "s3cr3t-" + rand.Text()
	spec := dockerfile(`FROM ` + s.base + `
RUN --mount=type=secret,id=token --mount=type=secret,id=token,env=TOKEN \
    test "$(cat /run/secrets/token)" = "$TOKEN" && sha256sum </run/secrets/token && \
    echo "it is $TOKEN." && printf '%s' "${TOKEN%????????}" && sleep 0.3 && printf '%s\n' "${TOKEN#??????????????????}" ; echo ` + unique() + `
`)
	spec.Secrets = []*builderv1.Secret{{Id: "token", Value: []byte(value)}, {Id: "other", Value: []byte("not-this-one")}}
	r := s.succeed(t, spec)
	if !strings.Contains(r.log(), "it is ***.") {
		t.Errorf("log: %q", r.log())
	}
	hidden(t, r, value)

	failing := dockerfile("FROM " + s.base + "\nRUN --mount=type=secret,id=token cat /run/secrets/token >&2; echo >&2; exit 3\n")
	failing.Secrets = spec.Secrets
	r, failure := s.fail(t, failing)
	if tail := failure.GetLogTail(); len(tail) == 0 || tail[len(tail)-1] != "***" {
		t.Errorf("log tail: %q", tail)
	}
	hidden(t, r, value)

	missing := dockerfile("FROM " + s.base + "\nRUN --mount=type=secret,id=absent,required=true true\n")
	missing.Secrets = spec.Secrets
	if _, failure := s.fail(t, missing); failure.GetReason() != errorsv1.Reason_REASON_SOURCE_NOT_FOUND ||
		failure.GetClass() != errorsv1.FailureClass_FAILURE_CLASS_USER || failure.GetReference() != "absent" {
		t.Errorf("%v", failure)
	}
}

// hidden fails the test when an event or the outcome holds a value.
func hidden(t *testing.T, r result, value string) {
	t.Helper()
	for _, e := range r.events {
		if text := e.String(); strings.Contains(text, value) || strings.Contains(text, value[:len(value)-1]) {
			t.Errorf("an event holds the secret: %v", e)
		}
	}
}

// A step signs with a key that never leaves the builder, by the id that it names,
// and cannot change the agent.
func TestFieldSSHKeys(t *testing.T) {
	s := sharedStack(t)
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + `
COPY probe /
RUN --mount=type=ssh /probe
RUN --mount=type=ssh,id=second,required=true /probe
`})
	labtest.Must(lab.Exec(labtest.Context(t, 2*time.Minute), lab.Command{
		Path: "/usr/bin/env", Args: []string{"go", "build", "-o", filepath.Join(dir, "probe"), "./cmd/sshprobe"},
		Env: []string{"CGO_ENABLED=0"}, Dir: labtest.Must(os.Getwd())(t),
	}))(t)
	_, first := labtest.Must2(ed25519.GenerateKey(rand.Reader))(t)
	second := labtest.Must(rsa.GenerateKey(rand.Reader, 2048))(t)

	spec := directory(dir)
	spec.SshKeys = []*builderv1.SshKey{{PrivateKey: privatePEM(t, first)}, {Id: "second", PrivateKey: privatePEM(t, second)}}
	spec.NoCache = true
	r := s.succeed(t, spec)
	for _, signer := range []any{first, second} {
		public := labtest.Must(ssh.NewSignerFromKey(signer))(t).PublicKey()
		if !strings.Contains(r.log(), "signed "+ssh.FingerprintSHA256(public)) {
			t.Errorf("no signature of %s in:\n%s", public.Type(), r.log())
		}
	}
	if !strings.Contains(r.log(), "rsa-sha2-512") {
		t.Errorf("the RSA key signs otherwise:\n%s", r.log())
	}

	spec.SshKeys = spec.GetSshKeys()[:1]
	_, failure := s.fail(t, spec)
	if failure.GetReason() != errorsv1.Reason_REASON_SOURCE_NOT_FOUND || failure.GetReference() != "second" {
		t.Errorf("%v", failure)
	}
}

func privatePEM(t *testing.T, key any) []byte {
	t.Helper()
	return pem.EncodeToMemory(labtest.Must(ssh.MarshalPrivateKey(key, ""))(t))
}

func TestFieldExtraHosts(t *testing.T) {
	s := sharedStack(t)
	spec := dockerfile("FROM " + s.base + "\nRUN cat /etc/hosts\n")
	spec.NoCache = true
	spec.ExtraHosts = map[string]string{"db.internal": "10.1.2.3", "six": "fd00::6"}
	log := strings.Join(strings.Fields(s.succeed(t, spec).log()), " ")
	for _, line := range []string{"10.1.2.3 db.internal", "fd00::6 six"} {
		if !strings.Contains(log, line) {
			t.Errorf("no %q in %q", line, log)
		}
	}
}

// Each network mode gives the step what it says: none has loopback only, host has
// the interfaces of the daemon's host.
func TestFieldNetwork(t *testing.T) {
	s := sharedStack(t)
	interfaces := func(mode builderv1.NetworkMode, rights ...builderv1.Entitlement) string {
		spec := dockerfile("FROM " + s.base + "\nRUN cat /proc/net/dev; readlink /proc/self/ns/net\n")
		spec.NoCache, spec.Network, spec.Entitlements = true, mode, rights
		return s.succeed(t, spec).log()
	}
	none := interfaces(builderv1.NetworkMode_NETWORK_MODE_NONE)
	if strings.Contains(none, "eth") || !strings.Contains(none, "lo:") {
		t.Errorf("network none has %q", none)
	}
	ours := labtest.Must(os.Readlink("/proc/self/ns/net"))(t)
	host := interfaces(builderv1.NetworkMode_NETWORK_MODE_HOST, builderv1.Entitlement_ENTITLEMENT_NETWORK_HOST)
	if !strings.Contains(host, ours) || strings.Contains(none, ours) {
		t.Errorf("the host's network is %s; host has %q, none %q", ours, host, none)
	}
	if sandbox := interfaces(builderv1.NetworkMode_NETWORK_MODE_SANDBOX); !strings.Contains(sandbox, "lo:") {
		t.Errorf("network sandbox has %q", sandbox)
	}
}

func TestFieldShmSizeBytes(t *testing.T) {
	s := sharedStack(t)
	spec := dockerfile("FROM " + s.base + "\nRUN grep /dev/shm /proc/mounts\n")
	spec.NoCache, spec.ShmSizeBytes = true, 7<<20
	if log := s.succeed(t, spec).log(); !strings.Contains(log, "size=7168k") {
		t.Errorf("/dev/shm: %q", log)
	}
}

func TestFieldUlimits(t *testing.T) {
	s := sharedStack(t)
	spec := dockerfile("FROM " + s.base + "\nRUN ulimit -Sn; ulimit -Hn; ulimit -Hc\n")
	spec.NoCache = true
	spec.Ulimits = []*builderv1.Ulimit{{Name: "nofile", Soft: 321, Hard: 654}, {Name: "core", Soft: 0, Hard: 0}}
	if log := s.succeed(t, spec).log(); log != "321\n654\n0\n" {
		t.Errorf("limits: %q", log)
	}
}

// A right needs the builder's policy and the daemon's configuration: what either
// does not give is refused, each at its layer, as the policy's business.
func TestFieldEntitlements(t *testing.T) {
	s := sharedStack(t)
	text := "FROM " + s.base + "\nRUN true\n"

	both := dockerfile("FROM " + s.base + "\nRUN --network=host true\n")
	both.Entitlements = []builderv1.Entitlement{builderv1.Entitlement_ENTITLEMENT_NETWORK_HOST}
	s.succeed(t, both)

	builder := dockerfile(text)
	builder.Entitlements = []builderv1.Entitlement{builderv1.Entitlement_ENTITLEMENT_DEVICE}
	refused(t, s.build(t, builder).err, codes.PermissionDenied, "POLICY_DENIED", "")

	daemon := dockerfile(text)
	daemon.Entitlements = []builderv1.Entitlement{builderv1.Entitlement_ENTITLEMENT_SECURITY_INSECURE}
	unasked := dockerfile("FROM " + s.base + "\nRUN --network=host true\n")
	for name, spec := range map[string]*builderv1.BuildSpec{"not given by the daemon": daemon, "not asked for": unasked} {
		r, failure := s.fail(t, spec)
		if failure.GetReason() != errorsv1.Reason_REASON_POLICY_DENIED || failure.GetClass() != errorsv1.FailureClass_FAILURE_CLASS_POLICY ||
			r.outcome.GetError().GetCode() != int32(codes.PermissionDenied) {
			t.Errorf("%s: %v", name, r.outcome.GetError())
		}
		hasRemedy(t, r)
	}
}
