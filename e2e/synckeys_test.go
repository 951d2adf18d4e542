package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/tonistiigi/fsutil"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

// A client of the gateway that seeds the key of an API build, with files of the same
// names, sizes, modes and times, changes nothing of what that build reads. The key is
// the one that the builder used when keys could be guessed.
func TestGateway_ClientCannotPutItsFilesIntoAnAPIBuild(t *testing.T) {
	s := sharedStack(t)
	text := "FROM " + s.base + "\nCOPY app /app\n"
	good, evil := "good "+unique(), ""
	evil = strings.Repeat("e", len(good))
	sum := sha256.New()
	for _, file := range [][2]string{{"Dockerfile", text}, {"app", good}} {
		fmt.Fprintf(sum, "%q %o %d\n%s", file[0], 0, len(file[1]), file[1])
	}
	dir := s.dir(t, map[string]string{"Dockerfile": text, "app": evil})
	for _, name := range []string{"Dockerfile", "app"} {
		path := filepath.Join(dir, name)
		labtest.Must(0, os.Chmod(path, 0o644))(t)
		labtest.Must(0, os.Chtimes(path, time.Unix(0, 0), time.Unix(0, 0)))(t)
	}
	ctx := labtest.Context(t, time.Minute)
	c := labtest.Must(client.New(ctx, "tcp://"+s.Builder.Addr))(t)
	defer func() { _ = c.Close() }()
	files := labtest.Must(fsutil.NewFS(dir))(t)
	labtest.Must(c.Solve(ctx, nil, client.SolveOpt{
		Frontend: "dockerfile.v0", SharedKey: "kiln:default:inline:" + hex.EncodeToString(sum.Sum(nil)),
		LocalMounts: map[string]fsutil.FS{"context": files, "dockerfile": files},
	}, nil))(t)

	ref := s.ref("not-poisoned")
	s.succeed(t, inline(map[string]string{"Dockerfile": text, "app": good}, ref))
	if got := file(t, ref, "", "/app"); got != good {
		t.Errorf("the image has %q, the build was given %q", got, good)
	}
}

// Two clients of one identity and project sync a directory once, also when the builder
// has started again between them.
func TestGateway_ClientsOfOneProjectSyncOnce(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\nRUN --mount=type=bind,target=/ctx ls /ctx\n", "big": strings.Repeat("x", 3<<20)})
	transferred := func(args ...string) bool {
		out := labtest.Must(lab.Exec(labtest.Context(t, time.Minute), buildctl(t, "tcp://"+s.Builder.Addr, dir, args...)))(t)
		return strings.Contains(out.Stderr, "transferring context: 3.")
	}
	if !transferred() {
		t.Error("the first client sent nothing")
	}
	if transferred("--no-cache") {
		t.Error("a second client sent all again")
	}
	s.restart(t)
	if transferred("--no-cache") {
		t.Error("after a restart of the builder all was sent again")
	}
}
