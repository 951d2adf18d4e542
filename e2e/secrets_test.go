package e2e_test

import (
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// canarySecret is a value that is found again wherever it goes.
func canarySecret(t *testing.T) string {
	t.Helper()
	var raw [24]byte
	labtest.Must(rand.Read(raw[:]))(t)
	return "canary-" + hex.EncodeToString(raw[:])
}

// canaryKey is an SSH key and the part of its PEM that no other key has.
func canaryKey(t *testing.T) (key []byte, tell string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block := labtest.Must(ssh.MarshalPrivateKey(private, "canary"))(t)
	key = pem.EncodeToMemory(block)
	lines := strings.Split(string(key), "\n")
	return key, lines[2]
}

// A secret and an SSH key go through all that a build may come to: a success, a
// step that writes the secret out, one that fails on it, a retry, a refusal, a
// provenance statement, a build by the gateway. They are in no log, error, event,
// span, metric, store, image or registry, nor in the bundle of kiln debug.
func TestSecretsAppearNowhere(t *testing.T) {
	s, collector := tracedStack(t)
	secret := canarySecret(t)
	key, keyLine := canaryKey(t)
	var said bytes.Buffer // all that callers were told
	note := func(messages ...proto.Message) {
		for _, m := range messages {
			said.WriteString(prototext.Format(m))
			raw, _ := proto.Marshal(m)
			said.Write(raw)
		}
	}
	build := func(text string, outputs ...*builderv1.Output) {
		t.Helper()
		spec := dockerfile(text)
		spec.Outputs = outputs
		spec.Secrets = []*builderv1.Secret{{Id: "tok", Value: []byte(secret)}}
		spec.SshKeys = []*builderv1.SshKey{{PrivateKey: key}}
		if len(outputs) > 0 {
			spec.Attestations = &builderv1.Attestations{Provenance: builderv1.ProvenanceMode_PROVENANCE_MODE_MAX}
		}
		r := s.build(t, spec)
		if r.err != nil {
			t.Fatal(r.err)
		}
		for _, e := range r.events {
			note(e)
		}
		note(s.get(t, r.id()))
	}
	use := "FROM " + s.base + "\nRUN --mount=type=secret,id=tok --mount=type=ssh test -s /run/secrets/tok -a -n \"$SSH_AUTH_SOCK\" && echo used " + unique() + " >/x\n"
	build(use, push(s.ref("canary"))...)
	// Written out whole, in pieces, and as base64; then a failure with it on the last line.
	write := "FROM " + s.base + "\nRUN --mount=type=secret,id=tok cat /run/secrets/tok; echo; base64 </run/secrets/tok; " +
		"head -c 20 /run/secrets/tok; sleep 0.3; tail -c +21 /run/secrets/tok; echo " + unique()
	build(write + "\n")
	build(write + "; cat /run/secrets/tok >&2; exit 3\n")

	failed := dockerfile("FROM " + s.Registry.Addr + "/nope:1\nRUN --mount=type=secret,id=tok true\n")
	failed.Secrets = []*builderv1.Secret{{Id: "tok", Value: []byte(secret)}}
	id := s.start(t, failed, "").GetId()
	s.ended(t, id, builderv1.BuildState_BUILD_STATE_FAILED)
	retried, err := s.api.RetryBuild(t.Context(), &builderv1.RetryBuildRequest{BuildId: id, Secrets: failed.GetSecrets()})
	if err != nil {
		t.Fatal(err)
	}
	note(s.ended(t, retried.GetBuild().GetId(), builderv1.BuildState_BUILD_STATE_FAILED).outcome)
	for _, bad := range []*builderv1.BuildSpec{
		{Secrets: []*builderv1.Secret{{Id: "", Value: []byte(secret)}}},
		{Secrets: []*builderv1.Secret{{Id: "a", Value: []byte(secret)}, {Id: "a", Value: []byte(secret)}}},
		{SshKeys: []*builderv1.SshKey{{PrivateKey: []byte("-----BEGIN NONSENSE-----\n" + keyLine + "\n-----END NONSENSE-----\n")}}},
	} {
		bad.Context, bad.Dockerfile = dockerfile("FROM scratch\n").GetContext(), dockerfile("FROM scratch\n").GetDockerfile()
		r := s.build(t, bad)
		if r.err == nil {
			t.Errorf("%v was accepted", bad.GetSecrets())
		}
		said.WriteString(r.err.Error())
	}

	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"Dockerfile": use, "secret": secret})
	out := labtest.Must(lab.Exec(labtest.Context(t, time.Minute), lab.Command{
		Path: labtest.Must(lab.Bin("buildctl"))(t), Args: []string{
			"--addr", "tcp://" + s.Builder.Addr, "build", "--frontend", "dockerfile.v0", "--local", "context=" + t.TempDir(), "--local", "dockerfile=" + dir,
			"--secret", "id=tok,src=" + filepath.Join(dir, "secret"), "--ssh", "default=" + keyFile(t, key), "--progress", "plain",
		},
	}))(t)
	said.WriteString(out.Stdout + out.Stderr)

	for _, span := range collector.Raw() {
		said.Write(span)
	}
	said.WriteString(s.Builder.Output())
	said.WriteString(s.Buildkitd.Output())
	said.WriteString(scrape(t, s.Builder))
	bundle := filepath.Join(t.TempDir(), "bundle.tar.gz")
	_, _ = s.kiln(t, "debug", "--bundle="+bundle, "--metrics", s.Builder.HTTPAddr, "--registry", s.Registry.Addr) // not all that it looks for is there
	packed := labtest.Must(gzip.NewReader(bytes.NewReader(labtest.Must(os.ReadFile(bundle))(t))))(t)
	if n := labtest.Must(said.ReadFrom(packed))(t); n < 10_000 {
		t.Errorf("the bundle has %d bytes", n)
	}
	for form, needle := range map[string]string{
		"the secret": secret, "the secret's base64": strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(secret)), "=")[:30],
		"the secret's end": secret[len(secret)-20:], "the key": keyLine,
	} {
		if at := bytes.Index(said.Bytes(), []byte(needle)); at >= 0 {
			t.Errorf("%s was said: …%q…", form, said.Bytes()[max(0, at-200):min(said.Len(), at+20)])
		}
		for _, root := range []string{s.Builder.State, s.Registry.Storage, filepath.Join(s.Buildkitd.Dir, "root")} {
			for _, path := range filesWith(t, root, needle) {
				t.Errorf("%s is in %s", form, path)
			}
		}
	}
	if !bytes.Contains(said.Bytes(), []byte("***")) {
		t.Error("nothing was masked: the step that writes the secret out was not seen")
	}
}

func keyFile(t *testing.T, key []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, key, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// filesWith lists the files at or below a path that hold a text.
func filesWith(t *testing.T, root, needle string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(needle)) {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatalf("reading %s: %v", root, err)
	}
	return found
}
