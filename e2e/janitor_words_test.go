package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

// A run says once what is wrong with a manifest, and the commands that a plan and a run show reach the
// janitor that was asked.
func TestJanitorCLI_SaysOnceAndShowsCommandsThatWork(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	for _, ref := range []string{"cache/a:main", "app:v1", "app:v2"} {
		putImage(t, registry, ref, small(t))
	}
	const odd = "this is no manifest"
	sum := sha256.Sum256([]byte(odd))
	digest := hex.EncodeToString(sum[:])
	write(t, filepath.Join(blobPath(registry, digest), "data"), odd)
	writeLink(t, registry, "app/_manifests/revisions/sha256/"+digest, "sha256:"+digest)
	j := keeper(t, l, registry, 8*day, nil)
	path := labtest.Must(lab.Bin("kiln"))(t)
	shell := func(command string) string {
		t.Helper()
		command = strings.Replace(command, "kiln ", path+" ", 1)
		out, err := lab.Exec(ctx, lab.Command{Path: "/bin/sh", Args: []string{"-c", command}})
		if err != nil {
			t.Fatalf("%s: %v\n%s%s", command, err, out.Stdout, out.Stderr)
		}
		return out.Stdout + out.Stderr
	}
	shown := func(text, after string) string {
		t.Helper()
		_, command, found := strings.Cut(text, after)
		if !found {
			t.Fatalf("no %q in\n%s", after, text)
		}
		command, _, _ = strings.Cut(command, "\n")
		return command
	}
	plan := shell("kiln janitor plan --janitor " + j.Addr)
	run := shell(shown(plan, "to do just this, within 15m: "))
	if n := strings.Count(run, digest); n != 1 {
		t.Errorf("%d times\n%s", n, run)
	}
	if err := pullWhole(ctx, registry.Addr, "cache/a:main"); err == nil {
		t.Error("what the plan removes is there")
	}
	shell(shown(run, "to bring it back: "))
	labtest.Must(0, pullWhole(ctx, registry.Addr, "cache/a:main"))(t)
	if help := shell("kiln janitor runs --janitor " + j.Addr); !strings.Contains(help, "succeeded") {
		t.Error(help)
	}
}
