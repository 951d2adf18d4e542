package e2e_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	"github.com/kilnbuild/kiln/proto/client"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// Certificates are renewed, and then the authority, and then once more, while callers call on
// connections of their own and on one that stays, and builds run: no call fails.
func TestS7_CertificatesRotateUnderLoad(t *testing.T) {
	s := startSecured(t)
	dial := func() (*client.Client, error) {
		return client.Dial(s.builder.Addr, client.WithTLS(s.file("ca.crt"), s.file("admin.crt"), s.file("admin.key"), ""), client.WithPatience(0))
	}
	stays := labtest.Must(dial())(t)
	defer func() { _ = stays.Close() }()
	ctx, stop := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	var calls, builds atomic.Int64
	each := func(what string, do func() error) {
		wait.Go(func() {
			for ctx.Err() == nil {
				if err := do(); err != nil {
					t.Errorf("%s: %v", what, err)
					return
				}
			}
		})
	}
	ask := func(c *client.Client) error {
		_, err := c.API().ListDaemons(t.Context(), &builderv1.ListDaemonsRequest{})
		calls.Add(1)
		return err
	}
	for range 3 {
		each("on a new connection", func() error {
			c, err := dial()
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			return ask(c)
		})
	}
	each("on the old connection", func() error { return ask(stays) })
	each("a build", func() error {
		builds.Add(1)
		spec := inline(map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"}, s.registry.Addr+"/web:rotated")
		stream, err := stays.API().Build(t.Context(), &builderv1.BuildRequest{Spec: spec})
		for err == nil {
			var res *builderv1.BuildResponse
			res, err = stream.Recv()
			if o := res.GetEvent().GetOutcome(); o != nil && o.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
				t.Errorf("a build ended: %v", o)
			}
		}
		if err.Error() != "EOF" {
			return err
		}
		return nil
	})
	// The registry and buildkitd read theirs when they start: they keep what they have.
	names := []string{"builder", "cachemanager", "janitor", "admin"}
	for range 2 {
		runKiln(t, append([]string{"certs", "rotate", "--dir", s.dir}, names...)...)
		time.Sleep(1200 * time.Millisecond)
		runKiln(t, "certs", "rotate", "--ca", "--dir", s.dir)
		time.Sleep(1200 * time.Millisecond)
	}
	stop()
	wait.Wait()
	if calls.Load() < 100 || builds.Load() < 5 {
		t.Errorf("%d calls and %d builds were made", calls.Load(), builds.Load())
	}
	// What serves now is what was renewed last.
	conn := s.dial(t, s.builder.Addr, credential{certificate: s.certificate(t, "admin")})
	if _, err := builderv1.NewBuilderServiceClient(conn).ListDaemons(t.Context(), &builderv1.ListDaemonsRequest{}); err != nil {
		t.Error(err)
	}
	if out := s.builder.Output(); strings.Count(out, "files were read again") < 4 {
		t.Errorf("the builder has not read its certificates again: %s", s.builder.Tail(20))
	}
}

// A pair of which one half was written, rules and tokens that cannot be read: what was in force
// stays, and a gauge says so until it is put right; rules and tokens that can be read are in
// force within seconds.
func TestS7_ReloadsOrKeepsAndAlarms(t *testing.T) {
	s := startSecured(t)
	stale := func(what, want string) {
		t.Helper()
		labtest.Eventually(t, 15*time.Second, what+" to be "+want, func() bool {
			return metric(t, s.builder, "kiln_security_stale", `what="`+what+`"`) == want
		})
	}
	list := func(c credential) codes.Code {
		conn := s.dial(t, s.builder.Addr, c)
		_, err := builderv1.NewBuilderServiceClient(conn).ListDaemons(t.Context(), &builderv1.ListDaemonsRequest{})
		if c.token != "" {
			err = call(t.Context(), conn, methodsOf(builderv1.File_kiln_builder_v1_builder_service_proto)[9], c.token)
		}
		return status.Code(err)
	}
	reader := credential{certificate: s.certificate(t, "reader")}
	for what, file := range map[string]string{"certificates": "builder.key", "rules": "policy.yaml", "tokens": "tokens.yaml"} {
		path := s.file(file)
		was := labtest.Must(os.ReadFile(path))(t)
		other := was[:len(was)/2]
		if what == "certificates" { // the key of another
			other = labtest.Must(os.ReadFile(s.file("janitor.key")))(t)
		}
		stale(what, "0")
		if err := os.WriteFile(path, other, 0o600); err != nil {
			t.Fatal(err)
		}
		stale(what, "1")
		if code := list(reader); code != codes.OK {
			t.Errorf("with half of %s, a call gets %s", file, code)
		}
		if err := os.WriteFile(path, was, 0o600); err != nil {
			t.Fatal(err)
		}
		stale(what, "0")
	}
	if end := metric(t, s.builder, "kiln_security_certificate_end_seconds"); end == "" {
		t.Error("when the certificate ends is not told")
	}

	stranger := credential{certificate: s.certificate(t, "stranger")}
	if code := list(stranger); code != codes.PermissionDenied {
		t.Errorf("a stranger gets %s", code)
	}
	labtest.Write(t, s.dir, map[string]string{"policy.yaml": strings.Replace(rules, "identities: [reader]", "identities: [stranger]", 1)})
	labtest.Eventually(t, 10*time.Second, "the new rules", func() bool { return list(stranger) == codes.OK && list(reader) == codes.PermissionDenied })

	token := strings.TrimSpace(runKiln(t, "token", "new", "stranger", "--file", s.file("tokens.yaml")).Stdout)
	labtest.Eventually(t, 10*time.Second, "the new token", func() bool { return list(credential{token: token}) == codes.OK })
	file := filepath.Join(s.lab.Dir, "own.token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	labtest.Must(lab.Exec(labtest.Context(t, time.Minute), lab.Command{
		Path: labtest.Must(lab.Bin("kiln"))(t), Args: []string{"builds", "ls", "--builder", s.builder.Addr, "--tls-ca", s.file("ca.crt"), "--token-file", file},
	}))(t)
}
