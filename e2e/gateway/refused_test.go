package gateway_test

import (
	"bytes"
	"log" //nolint:depguard // HTTP/2 in BuildKit's client logs by it
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/tonistiigi/fsutil"

	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

// A client whose build is refused says nothing else than why: its session has begun
// when it learns of it. BuildKit's client logs by the standard logger.
func TestSolve_RefusedSaysNothingOfItsSession(t *testing.T) {
	s := bakeStack(t, 2)
	var logged bytes.Buffer
	before := log.Writer()
	log.SetOutput(&logged)
	defer log.SetOutput(before)
	ctx := labtest.Context(t, 2*time.Minute)
	c := labtest.Must(client.New(ctx, "tcp://"+s.Builder.Addr))(t)
	defer func() { _ = c.Close() }()
	dir := labtest.Must(fsutil.NewFS(t.TempDir()))(t)
	start := time.Now()
	for range 40 {
		_, err := c.Solve(ctx, nil, client.SolveOpt{
			Frontend: "dockerfile.v0", LocalMounts: map[string]fsutil.FS{"context": dir, "dockerfile": dir},
			AllowedEntitlements: []string{"security.insecure"},
		}, nil)
		if err == nil || !strings.Contains(err.Error(), "security.insecure") {
			t.Fatal(err)
		}
	}
	t.Logf("40 refusals took %s", time.Since(start))
	if logged.Len() > 0 {
		t.Errorf("the client says:\n%s", logged.String())
	}
}
