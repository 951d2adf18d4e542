package e2e_test

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// A build that the daemon has no disk for says so, and what to do.
func TestMessages_OfADaemonWithoutDisk(t *testing.T) {
	root := t.TempDir()
	labtest.Must(0, syscall.Mount("tmpfs", root, "tmpfs", 0, "size=24m"))(t)
	t.Cleanup(func() { labtest.Must(0, syscall.Unmount(root, syscall.MNT_DETACH))(t) })
	s := ownStack(t, lab.StackOptions{Buildkitd: lab.BuildkitdOptions{Root: root}})
	dir := s.dir(t, map[string]string{
		"Dockerfile": "FROM " + s.base + "\nRUN dd if=/dev/urandom of=/big bs=1M count=64\n",
		"Copying":    "FROM scratch\nCOPY big /\n", "big": string(make([]byte, 40<<20)),
	})
	for name, args := range map[string][]string{
		"a step": {"build", "--progress", "none", dir}, "a context": {"build", "--progress", "none", "-f", dir + "/Copying", dir},
	} {
		out, err := s.kiln(t, args...)
		said(t, name, out, err, "no space left on device", "free disk")
	}
}

// A caller whose certificate has expired hears that, and how to renew it.
func TestMessages_OfAnExpiredCertificate(t *testing.T) {
	s := startSecured(t)
	old := s.expired(t, "admin")
	key := labtest.Must(x509.MarshalPKCS8PrivateKey(old.PrivateKey))(t)
	labtest.Write(t, s.dir, map[string]string{
		"old.crt": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: old.Certificate[0]})),
		"old.key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
	})
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
	for name, args := range calls(dir) {
		if name == "detach" {
			continue // It tries for half a minute, in case the builder is restarted.
		}
		address := map[string]string{"--builder": s.builder.Addr, "--cache-manager": s.caches.Addr, "--janitor": s.janitor.Addr}[flagOf(name)]
		out, err := lab.Exec(labtest.Context(t, time.Minute), lab.Command{
			Path: labtest.Must(lab.Bin("kiln"))(t), Dir: s.lab.Dir,
			Args: append(args, flagOf(name), address, "--tls-ca", s.file("ca.crt"), "--tls-cert", s.file("old.crt"), "--tls-key", s.file("old.key")),
		})
		said(t, name, out, err, "your certificate has expired", "kiln certs rotate")
	}
}

// A builder that is stopped for a restart ends the builds of its clients, which say why and
// what to do; the next command meets the builder that was started again.
func TestMessages_OfABuilderThatIsRestarted(t *testing.T) {
	s := ownStack(t, lab.StackOptions{Builder: &configv1.BuilderConfig{Server: &configv1.ServerConfig{
		Limits: &configv1.LimitsConfig{ShutdownGrace: durationpb.New(5 * time.Second)},
	}}})
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\nRUN echo begun " + unique() + "; sleep 60\n", "fast": "FROM scratch\nCOPY fast /\n"})
	kiln := labtest.Must(s.lab.Run(lab.Command{
		Name: "kiln", Path: labtest.Must(lab.Bin("kiln"))(t), Args: []string{"build", "--progress", "none", "--push", "-t", s.ref("restarted"), dir}, Env: []string{"KILN_BUILDER=" + s.Builder.Addr},
	}))(t)
	id := s.gatewayBuild(t, s.ref("restarted"), running).GetId()
	s.running(t, id, "begun")
	other := labtest.Must(s.lab.Run(buildctl(t, "tcp://"+s.Builder.Addr, dir, "--output", "type=image,push=true,name="+s.ref("other"))))(t)
	s.gatewayBuild(t, s.ref("other"), running)
	labtest.Must(0, s.Builder.Stop(labtest.Context(t, time.Minute)))(t)
	<-kiln.Done()
	<-other.Done()
	said(t, "kiln build", lab.Output{Stderr: kiln.Output()}, errors.New("ended"), "the builder stopped", "again")
	if out := other.Output(); !strings.Contains(out, "the builder stopped") || !strings.Contains(out, "build again") {
		t.Errorf("buildctl says:\n%s", out)
	}
	s.startAgain(t)
	if out, err := s.kiln(t, "build", "--progress", "none", "-f", dir+"/fast", dir); err != nil {
		t.Errorf("after the restart: %v\n%s", err, out.Stderr)
	}
}
