package relay_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/tonistiigi/fsutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/relay"
)

func tree(t testing.TB, files map[string][]byte) fsutil.FS {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fs, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

func noise(size int) []byte {
	data := make([]byte, size)
	_, _ = rand.Read(data)
	return data
}

func TestLink_SyncsFilesByTheDaemonsPatterns(t *testing.T) {
	big := noise(5 << 20)
	offer := filesync.NewFSSyncProvider(filesync.StaticDirSource{"context": tree(t, map[string][]byte{
		"src/big": big, "src/small": []byte("small"), "src/skip": []byte("skipped"), "other": []byte("other"),
	})})
	caller := linked(t, offer)
	into := t.TempDir()
	if err := filesync.FSSync(t.Context(), caller, filesync.FSSendRequestOpt{
		Name: "context", IncludePatterns: []string{"src"}, ExcludePatterns: []string{"src/skip"}, DestDir: into,
	}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(into, "src/big")); err != nil || !bytes.Equal(got, big) {
		t.Errorf("the big file came as %d bytes, %v", len(got), err)
	}
	for _, absent := range []string{"src/skip", "other"} {
		if _, err := os.Stat(filepath.Join(into, absent)); !os.IsNotExist(err) {
			t.Errorf("%s: %v", absent, err)
		}
	}
}

func TestLink_ExportsToTheClient(t *testing.T) {
	dir, want := t.TempDir(), noise(3<<20)
	caller := linked(t, filesync.NewFSSyncTarget(filesync.WithFSSyncDir(0, dir)))
	if err := filesync.CopyToCaller(t.Context(), tree(t, map[string][]byte{"out": want}), 0, caller, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "out")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the export came as %d bytes, %v", len(got), err)
	}
}

func TestLink_TellsSecretsBeforeTheDaemonHasThem(t *testing.T) {
	d, f := newDaemon(t), newFront(t, relay.Options{})
	s, c, _ := f.connect(t, "", secretsprovider.FromMap(map[string][]byte{"token": []byte("canary")}))
	var mu sync.Mutex
	told := map[string]string{}
	open(t, c, d, relay.OpenOptions{OnSecret: func(id string, value []byte) {
		mu.Lock()
		defer mu.Unlock()
		told[id] = string(value)
	}})
	caller := d.caller(t, s.ID())
	value, err := secrets.GetSecret(t.Context(), caller, "token")
	mu.Lock()
	defer mu.Unlock()
	if err != nil || string(value) != "canary" || told["token"] != "canary" || len(told) != 1 {
		t.Errorf("the daemon has %q, %v; the builder was told %v", value, err, told)
	}
	if _, err := secrets.GetSecret(t.Context(), caller, "none"); !errors.Is(err, secrets.ErrNotFound) {
		t.Errorf("a secret that the client does not have: %v", err)
	}
}

// What goes wrong with one secret ends the call, and neither the session nor the builder.
func TestLink_OutlivesAPanicOfWhoIsToldOfSecrets(t *testing.T) {
	d, f := newDaemon(t), newFront(t, relay.Options{})
	s, c, _ := f.connect(t, "", secretsprovider.FromMap(map[string][]byte{"bad": []byte("canary"), "good": []byte("canary")}))
	open(t, c, d, relay.OpenOptions{OnSecret: func(id string, _ []byte) {
		if id == "bad" {
			panic("a value that nobody thought of")
		}
	}})
	caller := d.caller(t, s.ID())
	if _, err := secrets.GetSecret(t.Context(), caller, "bad"); status.Code(err) != codes.Internal || strings.Contains(err.Error(), "nobody") {
		t.Error(err)
	}
	if value, err := secrets.GetSecret(t.Context(), caller, "good"); err != nil || string(value) != "canary" {
		t.Errorf("%q, %v", value, err)
	}
}

func TestOpen_TellsTheDaemonTheSessionButNotTheClientsKey(t *testing.T) {
	d, f := newDaemon(t), newFront(t, relay.Options{})
	s, c, _ := f.connect(t, "mine", secretsprovider.FromMap(nil))
	if c.ID() != s.ID() || c.SharedKey() != "mine" || !slices.Contains(c.Methods(), "/moby.buildkit.secrets.v1.Secrets/GetSecret") {
		t.Errorf("the client offers %q %q %v", c.ID(), c.SharedKey(), c.Methods())
	}
	open(t, c, d, relay.OpenOptions{SharedKey: "derived"})
	caller := d.caller(t, s.ID())
	if caller.SharedKey() != "derived" || !caller.Supports("/moby.buildkit.secrets.v1.Secrets/GetSecret") || caller.Supports("/other/Method") {
		t.Errorf("the daemon has the key %q", caller.SharedKey())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, values := range d.md {
		if slices.Contains(values, "mine") {
			t.Errorf("the daemon sees the client's key in %s", key)
		}
	}
}

func TestClient_OutlivesItsLinks(t *testing.T) {
	first, second, f := newDaemon(t), newDaemon(t), newFront(t, relay.Options{})
	s, c, _ := f.connect(t, "", secretsprovider.FromMap(map[string][]byte{"a": []byte("value")}))
	link := open(t, c, first, relay.OpenOptions{})
	beside := open(t, c, second, relay.OpenOptions{})
	for _, d := range []*daemon{first, second} {
		if value, err := secrets.GetSecret(t.Context(), d.caller(t, s.ID()), "a"); err != nil || string(value) != "value" {
			t.Errorf("%q, %v", value, err)
		}
	}
	link.Close()
	within(t, link.Done(), 5*time.Second, "the link has not ended")
	if err := errors.Join(link.Err(), c.Err()); err != nil {
		t.Error(err)
	}
	open(t, c, first, relay.OpenOptions{}) // again
	if value, err := secrets.GetSecret(t.Context(), first.caller(t, s.ID()), "a"); err != nil || string(value) != "value" {
		t.Errorf("after it was opened again: %q, %v", value, err)
	}
	select {
	case <-c.Done():
		t.Error("the session ended with its link")
	case <-beside.Done():
		t.Error("a link ended with another")
	default:
	}
}

func TestLink_EndsWithTheClient(t *testing.T) {
	d, f := newDaemon(t), newFront(t, relay.Options{})
	s, c, stop := f.connect(t, "", secretsprovider.FromMap(nil))
	link := open(t, c, d, relay.OpenOptions{})
	ctx := d.caller(t, s.ID()).Context(t.Context())
	stop()
	within(t, c.Done(), 5*time.Second, "the session has not ended")
	within(t, link.Done(), 5*time.Second, "the link has not ended")
	if err := errors.Join(c.Err(), link.Err(), <-f.ended); err != nil {
		t.Errorf("a client that leaves is an error: %v", err)
	}
	for d.held(ctx, s.ID()) {
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := c.Open(t.Context(), d.conn, relay.OpenOptions{}); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("opening the session of a client that left: %v", err)
	}
}

func (d *daemon) held(ctx context.Context, id string) bool {
	caller, err := d.manager.Get(ctx, id, true)
	return err == nil && caller != nil
}

func TestLink_EndsWithTheDaemon(t *testing.T) {
	d, f := newDaemon(t), newFront(t, relay.Options{})
	s, c, _ := f.connect(t, "", secretsprovider.FromMap(nil))
	link := open(t, c, d, relay.OpenOptions{})
	d.caller(t, s.ID())
	_ = d.conn.Close()
	within(t, link.Done(), 5*time.Second, "the link has not ended")
	if c.Err() != nil {
		t.Error(c.Err())
	}
}

func TestAccept_RefusesMalformedOffers(t *testing.T) {
	f := newFront(t, relay.Options{})
	conn := dial(t, f.addr)
	const prefix = "x-docker-expose-session-"
	good := metadata.Pairs(prefix+"uuid", "abc")
	many := slices.Repeat([]string{"/service/method"}, 300)
	for name, md := range map[string]metadata.MD{
		"none":        {},
		"two ids":     {prefix + "uuid": {"a", "b"}},
		"long id":     {prefix + "uuid": {strings.Repeat("a", 129)}},
		"id in parts": {prefix + "uuid": {"a:b"}},
		"long name":   metadata.Join(good, metadata.Pairs(prefix+"name", strings.Repeat("a", 300))),
		"long key":    metadata.Join(good, metadata.Pairs(prefix+"sharedkey", strings.Repeat("a", 5000))),
		"no method":   metadata.Join(good, metadata.Pairs(prefix+"grpc-method", "method")),
		"long method": metadata.Join(good, metadata.Pairs(prefix+"grpc-method", "/a/"+strings.Repeat("a", 300))),
		"too many":    metadata.Join(good, metadata.MD{prefix + "grpc-method": many}),
	} {
		stream := begin(t, conn, md)
		if err := stream.RecvMsg(nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if err := <-f.ended; fault.KindOf(err) != fault.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRelay_ManySessionsAtOnce(t *testing.T) {
	d, f := newDaemon(t), newFront(t, relay.Options{})
	var all sync.WaitGroup
	for i := range 50 {
		value := fmt.Appendf(nil, "value %d", i)
		s, c, stop := f.connect(t, "", secretsprovider.FromMap(map[string][]byte{"a": value}))
		all.Go(func() {
			defer stop()
			link, err := c.Open(t.Context(), d.conn, relay.OpenOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			defer link.Close()
			caller, err := d.manager.Get(t.Context(), s.ID(), false)
			if err != nil {
				t.Error(err)
				return
			}
			for range 20 {
				if got, err := secrets.GetSecret(t.Context(), caller, "a"); err != nil || !bytes.Equal(got, value) {
					t.Errorf("%q, %v", got, err)
				}
			}
		})
	}
	all.Wait()
}

func TestLink_RefusesCallsOfAClientThatLeft(t *testing.T) {
	d, f := newDaemon(t), newFront(t, relay.Options{})
	s, c, _ := f.connect(t, "", secretsprovider.FromMap(nil))
	open(t, c, d, relay.OpenOptions{})
	caller := d.caller(t, s.ID())
	c.Close()
	if _, err := secrets.GetSecret(t.Context(), caller, "a"); status.Code(err) != codes.Unavailable && status.Code(err) != codes.Canceled {
		t.Error(err)
	}
}
