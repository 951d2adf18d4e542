package e2e_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

// With --require-token, no service of kiln up takes a call without the token, be it by
// gRPC, by BuildKit's protocol or by HTTP; and kiln commands find the token by themselves.
func TestUp_RequireTokenRefusesCallersWithoutIt(t *testing.T) {
	l := labtest.New(t)
	runDir := t.TempDir()
	env := []string{"KILN_RUN_DIR=" + runDir}
	up := startUp(t, l, lab.UpOptions{Args: []string{"--require-token"}, Env: env})
	labtest.Eventually(t, 10*time.Second, "the summary", func() bool { return strings.Contains(up.Output(), "Ctrl-C") })

	for _, call := range [][2]string{
		{up.Builder, "kiln.builder.v1.BuilderService/ListBuilds"},
		{up.Builder, "moby.buildkit.v1.Control/ListWorkers"},
		{up.Builder, "moby.buildkit.v1.Control/Prune"},
		{up.CacheManager, "kiln.cachemanager.v1.CacheManagerService/GetPolicy"},
		{up.CacheManager, "kiln.cachemanager.v1.CacheManagerService/Prune"},
		{up.Janitor, "kiln.janitor.v1.JanitorService/GetPolicy"},
		{up.Janitor, "kiln.janitor.v1.JanitorService/Run"},
	} {
		conn := labtest.Must(grpc.NewClient(call[0], grpc.WithTransportCredentials(insecure.NewCredentials())))(t)
		for _, token := range []string{"", "kiln_wrong"} {
			ctx := labtest.Context(t, time.Minute)
			if token != "" {
				ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
			}
			err := conn.Invoke(ctx, "/"+call[1], &emptypb.Empty{}, &emptypb.Empty{})
			if status.Code(err) != codes.Unauthenticated {
				t.Errorf("%s with token %q: %v", call[1], token, err)
			}
		}
		_ = conn.Close()
	}
	buildctl := lab.Command{Path: labtest.Must(lab.Bin("buildctl"))(t), Args: []string{"--addr", "tcp://" + up.Builder, "prune"}}
	if out, err := lab.Exec(labtest.Context(t, time.Minute), buildctl); err == nil || !strings.Contains(out.Stderr, "Unauthenticated") {
		t.Errorf("buildctl prune without a token: %v\n%s", err, out.Stderr)
	}
	events := "http://127.0.0.1:" + port(up, 12) + "/registry-events"
	response := labtest.Must(http.Post(events, "application/json", strings.NewReader(`{"events":[]}`)))(t)
	response.Body.Close()
	if response.StatusCode != http.StatusUnauthorized {
		t.Errorf("%s: %s", events, response.Status)
	}

	tokens := labtest.Must(filepath.Glob(filepath.Join(runDir, "profiles", "*.token")))(t)
	if len(tokens) != 1 {
		t.Fatalf("tokens %v", tokens)
	}
	if mode := labtest.Must(os.Stat(tokens[0]))(t).Mode(); mode.Perm() != 0o600 {
		t.Errorf("the token has mode %v", mode)
	}
	secret := strings.TrimSpace(string(labtest.Must(os.ReadFile(tokens[0]))(t)))
	if len(secret) < 30 || strings.Contains(up.Output(), secret) {
		t.Errorf("the token is short, or it was printed: %s", up.Output())
	}

	// The only profile is found without a flag, and with it the token; the builder shows it to the janitor.
	base := labtest.Must(image.PushBase(labtest.Context(t, time.Minute), up.Registry))(t)
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM " + base + "\nRUN echo " + unique() + "\n"})
	for _, args := range [][]string{
		{"build-registry", dir, dir, up.Registry + "/tokens:1", "--push"},
		{"builds", "ls"},
		{"cache", "ls"},
		{"janitor", "check"},
	} {
		command := lab.Command{Path: labtest.Must(lab.Bin("kiln"))(t), Args: args, Env: env}
		if out, err := lab.Exec(labtest.Context(t, time.Minute), command); err != nil {
			t.Errorf("kiln %s: %v\n%s", strings.Join(args, " "), err, out.Stderr)
		}
	}
	for _, name := range []string{"builder", "cachemanager", "janitor"} {
		log := string(labtest.Must(os.ReadFile(filepath.Join(up.DataDir, "logs", name+".log")))(t))
		if strings.Contains(log, secret) {
			t.Errorf("%s logs the token", name)
		}
		for line := range strings.Lines(log) {
			if peer := strings.Contains(line, "Lease") || strings.Contains(line, "ReportBuild") || strings.Contains(line, "RecordUse"); peer && strings.Contains(strings.ToLower(line), "unauthenticated") {
				t.Errorf("a peer of %s was refused: %s", name, line)
			}
		}
	}

	// A restart keeps the token, and the end takes the caller's copy away.
	if err := up.Stop(labtest.Context(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	if left := labtest.Must(filepath.Glob(filepath.Join(runDir, "profiles", "*")))(t); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	startUp(t, l, lab.UpOptions{DataDir: up.DataDir, Args: []string{"--require-token"}, Env: env})
	labtest.Eventually(t, 20*time.Second, "the token is there again", func() bool {
		again, err := os.ReadFile(tokens[0])
		return err == nil && strings.TrimSpace(string(again)) == secret
	})
}

// port returns the port of a kiln up at an offset from its base.
func port(up *lab.Up, offset int) string { return strconv.Itoa(up.Base + offset) }

// Neither the root directory nor Kiln's own state is an allowed root, however spelled.
func TestUp_RefusesToGiveTheHostAwayAsAnAllowedRoot(t *testing.T) {
	l := labtest.New(t)
	slash := filepath.Join(l.Dir, "slash")
	if err := os.Symlink("/", slash); err != nil {
		t.Fatal(err)
	}
	base := labtest.Must(lab.FreeBase())(t)
	for _, root := range []string{"/", "//", "/..", "/tmp/..", slash, l.Dir, filepath.Join(l.Dir, "up", "builder")} {
		dataDir := filepath.Join(l.Dir, "up")
		if err := os.MkdirAll(filepath.Join(dataDir, "builder"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dataDir, "lock"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := kilnCommand(t, "", "up", "--step-network", "host", "--data-dir", dataDir, "--listen-base", strconv.Itoa(base), "--allow-root", root)
		if err == nil || !strings.Contains(out.Stderr, "allowed root") || !strings.Contains(out.Stderr, "--allow-root") {
			t.Errorf("%s: %v\n%s", root, err, out.Stderr)
		}
	}
}
