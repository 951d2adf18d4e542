package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
)

func small(t *testing.T) v1.Image {
	t.Helper()
	return labtest.Must(random.Image(2_000, 2))(t)
}

// With the descriptor cache that the guide's configuration turns on, a registry would take
// pushes of what is gone: the janitor finds that out, removes manifests and no blob, and says
// so; what is pushed again can be pulled.
func TestS5_RegistryThatRemembersBlobs(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{DescriptorCache: true}))(t)
	img := small(t)
	putImage(t, registry, "cache/a:main", img)
	putImage(t, registry, "app:v1", small(t))
	blobs, _ := stored(t, registry.Storage)
	j := keeper(t, l, registry, 8*day, nil)
	checks, _ := j.check(t)
	if c := checks["descriptor_cache"]; c.GetState() != janitorv1.CheckState_CHECK_STATE_WARN || !strings.Contains(c.GetRemedy(), "storage.cache") {
		t.Errorf("%v", c)
	}
	o := j.run(t, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}, Force: true})
	if r := o.finished; r.GetState() != janitorv1.RunState_RUN_STATE_PARTIAL || r.GetRemoved().GetManifests() != 1 || r.GetRemoved().GetBlobs() != 0 ||
		!strings.Contains(r.GetError().GetMessage(), "blobdescriptor") {
		t.Errorf("%v", r)
	}
	if now, _ := stored(t, registry.Storage); now != blobs {
		t.Errorf("%d blobs are left of %d", now, blobs)
	}
	if err := pullWhole(ctx, registry.Addr, "cache/a:main"); err == nil {
		t.Error("the manifest is there")
	}
	putImage(t, registry, "cache/a:main", img)
	labtest.Must(0, pullWhole(ctx, registry.Addr, "cache/a:main"))(t)

	// The same without the cache.
	labtest.Must(0, registry.Stop(ctx))(t)
	labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{Addr: registry.Addr, Storage: registry.Storage}))(t)
	time.Sleep(time.Millisecond)
	j = keeper(t, l, registry, 16*day, nil)
	if c, _ := j.check(t); c["descriptor_cache"].GetState() != ok {
		t.Errorf("%v", c["descriptor_cache"])
	}
	o = j.run(t, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}, Force: true})
	if now, _ := stored(t, registry.Storage); o.finished.GetState() != janitorv1.RunState_RUN_STATE_SUCCEEDED || now >= blobs {
		t.Errorf("%d blobs are left of %d: %v", now, blobs, o.finished)
	}
	putImage(t, registry, "cache/a:main", img)
	labtest.Must(0, pullWhole(ctx, registry.Addr, "cache/a:main"))(t)
}

// listens is a janitor that the registry notifies, and that registry. The configuration is the
// one that is shipped, but for its directory and addresses, and the secret of the script's.
func listens(t *testing.T, l *lab.Lab, moved time.Duration, state string) (janitor, *lab.Registry, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	http := labtest.Must(lab.FreeAddr())(t)
	registry := startShipped(t, l, false, notificationsEnv(t, file, "http://"+http+"/registry-events"))
	secret := string(labtest.Must(os.ReadFile(file))(t))
	j := keeper(t, l, registry, moved, func(cfg *configv1.JanitorConfig) {
		cfg.Server = &configv1.ServerConfig{HttpListen: http}
		cfg.Notifications = &configv1.NotificationsConfig{SecretFile: file}
		cfg.StateDir = state
	})
	return j, registry, secret
}

// What is pulled stays, as the registry's notifications tell; the janitor's own requests are
// no uses; and as long as nobody listened nothing is old.
func TestS5_NotificationsProlongLife(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, time.Minute)
	state := t.TempDir()
	j, registry, secret := listens(t, l, 0, state)
	putImage(t, registry, "cache/pulled:main", small(t))
	putImage(t, registry, "cache/not:main", small(t))
	if c, _ := j.check(t); c["notifications"].GetState() != ok {
		t.Errorf("%v", c["notifications"])
	}
	labtest.Must(0, j.Stop(ctx))(t)

	// Day six: one of them is pulled.
	j, registry = again(t, l, j, registry, state, 6*day, secret)
	if o := j.run(t, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}, Force: true}); o.finished.GetState() != janitorv1.RunState_RUN_STATE_SUCCEEDED || len(o.removed) > 0 {
		t.Errorf("on day six: %v", o.finished)
	}
	labtest.Must(0, pullWhole(ctx, registry.Addr, "cache/pulled:main"))(t)
	labtest.Eventually(t, 10*time.Second, "the notification", func() bool {
		_, all := j.planned(t, &janitorv1.PlanRunRequest{Policy: weekly()})
		for _, v := range all {
			if v.GetItem().GetRepository() == "cache/pulled" && v.GetItem().GetPullTime() != nil {
				return true
			}
		}
		return false
	})
	labtest.Must(0, j.Stop(ctx))(t)
	j, registry = again(t, l, j, registry, state, 8*day, secret)
	o := j.run(t, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}, Force: true})
	if len(o.removed) == 0 || o.removed[0].GetItem().GetRepository() != "cache/not" {
		t.Errorf("on day eight: %v, %v", o.removed, o.finished)
	}
	labtest.Must(0, pullWhole(ctx, registry.Addr, "cache/pulled:main"))(t)
	if err := pullWhole(ctx, registry.Addr, "cache/not:main"); err == nil {
		t.Error("what nobody pulled is there")
	}
	labtest.Must(0, j.Stop(ctx))(t)

	// A listener with no memory has heard nothing for as long as there is anything.
	j, _ = again(t, l, j, registry, t.TempDir(), 30*day, secret)
	if plan, _ := j.planned(t, &janitorv1.PlanRunRequest{Policy: weekly()}); plan.GetRemove().GetManifests() > 0 {
		t.Errorf("after an absence: %v", plan)
	}
}

// again starts a janitor in the place of one that has ended, with another clock or memory.
func again(t *testing.T, l *lab.Lab, was janitor, registry *lab.Registry, state string, moved time.Duration, secret string) (janitor, *lab.Registry) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	labtest.Must(0, os.WriteFile(file, []byte(secret), 0o600))(t)
	return keeper(t, l, registry, moved, func(cfg *configv1.JanitorConfig) {
		cfg.Server = &configv1.ServerConfig{HttpListen: was.HTTPAddr}
		cfg.Notifications = &configv1.NotificationsConfig{SecretFile: file}
		cfg.StateDir = state
	}), registry
}

// Notifications that are forged, malformed, replayed or too many are each answered for what
// they are, and counted; one that is replayed prolongs nothing.
func TestS5_NotificationsThatAreWrong(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, time.Minute)
	j, registry, secret := listens(t, l, 0, t.TempDir())
	post := func(secret, body string) int {
		t.Helper()
		req := labtest.Must(http.NewRequestWithContext(ctx, http.MethodPost, "http://"+j.HTTPAddr+"/registry-events", strings.NewReader(body)))(t)
		if secret != "" {
			req.Header.Set("Authorization", "Bearer "+secret)
		}
		res := labtest.Must(http.DefaultClient.Do(req))(t)
		_ = res.Body.Close()
		return res.StatusCode
	}
	defer http.DefaultClient.CloseIdleConnections()
	event := func(at time.Time) string {
		return fmt.Sprintf(`{"events":[{"id":"1","timestamp":%q,"action":"pull","target":{"mediaType":%q,"digest":"sha256:%x","repository":"cache/x","tag":"t"}}]}`,
			at.Format(time.RFC3339Nano), types.OCIManifestSchema1, sha256.Sum256(nil))
	}
	for name, c := range map[string]struct {
		secret, body string
		want         int
	}{
		"forged":           {"another secret", event(time.Now()), http.StatusUnauthorized},
		"without a secret": {"", event(time.Now()), http.StatusUnauthorized},
		"no JSON":          {secret, "{", http.StatusBadRequest},
		"of no repository": {secret, `{"events":[{"action":"pull"}]}`, http.StatusOK},
		"no events":        {secret, `{}`, http.StatusOK},
		"too large":        {secret, `{"events":[{"id":"` + strings.Repeat("x", 5<<20) + `"}]}`, http.StatusRequestEntityTooLarge},
		"right":            {secret, event(time.Now().Add(-time.Hour)), http.StatusOK},
		"again":            {secret, event(time.Now().Add(-time.Hour)), http.StatusOK},
		"older":            {secret, event(time.Now().Add(-300 * day)), http.StatusOK},
		"of the future":    {secret, event(time.Now().Add(300 * day)), http.StatusOK},
	} {
		if got := post(c.secret, c.body); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
	for outcome, least := range map[string]string{"denied": "2", "malformed": "3", "kept": "4"} {
		if got := metric(t, j.Service, "kiln_registry_notifications_total", fmt.Sprintf("outcome=%q", outcome)); got != least {
			t.Errorf("%s: %s, want %s", outcome, got, least)
		}
	}
	// A flood.
	answers := make(chan int, 400)
	for range cap(answers) {
		go func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+j.HTTPAddr+"/registry-events", strings.NewReader(event(time.Now())))
			if err == nil {
				req.Header.Set("Authorization", "Bearer "+secret)
				res, err := http.DefaultClient.Do(req)
				if err == nil {
					_ = res.Body.Close()
					answers <- res.StatusCode
					return
				}
			}
			answers <- 0
		}()
	}
	for range cap(answers) {
		if got := <-answers; got != http.StatusOK && got != http.StatusTooManyRequests {
			t.Errorf("in a flood: %d", got)
		}
	}
	putImage(t, registry, "cache/a:main", small(t)) // it goes on
	labtest.Must(0, pullWhole(ctx, registry.Addr, "cache/a:main"))(t)

	// When they do not arrive it is not known what was used, and nothing goes.
	deaf := keeper(t, l, registry, 8*day, func(cfg *configv1.JanitorConfig) {
		file := filepath.Join(t.TempDir(), "secret")
		labtest.Must(0, os.WriteFile(file, []byte("a secret that the registry does not know"), 0o600))(t)
		cfg.Notifications = &configv1.NotificationsConfig{SecretFile: file}
	})
	o, err := deaf.tryRun(ctx, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}, Force: true})
	if err != nil || o.finished.GetState() != janitorv1.RunState_RUN_STATE_FAILED || !strings.Contains(o.finished.GetError().GetMessage(), "notifications") {
		t.Errorf("%v, %v", o.finished, err)
	}
	if c, _ := deaf.check(t); c["notifications"].GetState() != fail {
		t.Errorf("%v", c["notifications"])
	}
	labtest.Must(0, pullWhole(ctx, registry.Addr, "cache/a:main"))(t)
}

// The registry away, the storage away, read-only or full: each is said, in the run, in health
// and in metrics, and nothing is removed.
func TestS5_FaultsRemoveNothing(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	disk := t.TempDir()
	labtest.Must(0, unix.Mount("tmpfs", disk, "tmpfs", 0, "size=4m"))(t)
	t.Cleanup(func() { labtest.Must(0, unix.Unmount(disk, unix.MNT_DETACH))(t) })
	root := filepath.Join(disk, "storage")
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{Storage: root}))(t)
	putImage(t, registry, "cache/a:main", small(t))
	putImage(t, registry, "app:v1", small(t))
	j := keeper(t, l, registry, 8*day, func(cfg *configv1.JanitorConfig) { cfg.CheckInterval = durationpb.New(200 * time.Millisecond) })
	j.waitHealth(t, serving)
	run := func(what, want string) {
		t.Helper()
		before, _ := stored(t, root)
		o, err := j.tryRun(ctx, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}, Force: true})
		text := fmt.Sprint(err)
		if err == nil {
			text = o.finished.GetError().GetMessage()
			if s := o.finished.GetState(); s != janitorv1.RunState_RUN_STATE_FAILED {
				t.Errorf("%s: %s", what, s)
			}
		} else if status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", what, err)
		}
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("%s: %s", what, text)
		}
		if after, _ := stored(t, root); after != before {
			t.Errorf("%s: %d blobs are left of %d", what, after, before)
		}
	}

	labtest.Must(0, registry.Stop(ctx))(t)
	j.waitHealth(t, notServing)
	run("the registry is away", "did not|connection refused")
	registry = labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{Addr: registry.Addr, Storage: root}))(t)
	j.waitHealth(t, serving)

	remount := func(flags uintptr) { labtest.Must(0, unix.Mount("", disk, "", unix.MS_REMOUNT|flags, "size=4m"))(t) }
	remount(unix.MS_RDONLY)
	j.waitHealth(t, notServing)
	run("read-only", "cannot be written|read-only|did not take")
	remount(0)
	j.waitHealth(t, serving)

	filler := filepath.Join(disk, "filler")
	file := labtest.Must(os.Create(filler))(t)
	for err := error(nil); err == nil; {
		_, err = file.Write(make([]byte, 4096))
	}
	labtest.Must(0, file.Close())(t)
	run("full", "cannot be written|did not take|no space")
	labtest.Must(0, os.Remove(filler))(t)

	moved := root + "-away"
	labtest.Must(0, os.Rename(root, moved))(t)
	labtest.Must(0, os.WriteFile(root, nil, 0o600))(t) // so that nobody makes it again
	j.waitHealth(t, notServing)
	o, err := j.tryRun(ctx, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}, Force: true})
	if err == nil && o.finished.GetState() != janitorv1.RunState_RUN_STATE_FAILED {
		t.Errorf("the storage is away: %v", o.finished)
	}
	labtest.Must(0, os.Remove(root))(t)
	labtest.Must(0, os.Rename(moved, root))(t)
	j.waitHealth(t, serving)

	if got := metric(t, j.Service, "kiln_registry_runs_total", `outcome="failed"`); got == "" || got == "0" {
		t.Errorf("failed runs in the metrics: %q", got)
	}
	labtest.Must(0, pullWhole(ctx, registry.Addr, "cache/a:main"))(t)
	if last := j.run(t, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}, Force: true}); last.finished.GetState() != janitorv1.RunState_RUN_STATE_SUCCEEDED || len(last.removed) == 0 {
		t.Errorf("afterwards: %v", last.finished)
	}
}

// link writes a link as the registry does, and data a blob.
func writeLink(t *testing.T, registry *lab.Registry, path, digest string) {
	t.Helper()
	write(t, filepath.Join(registry.Storage, "docker/registry/v2/repositories", path, "link"), digest)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	labtest.Must(0, os.MkdirAll(filepath.Dir(path), 0o755))(t)
	labtest.Must(0, os.WriteFile(path, []byte(text), 0o644))(t) //nolint:gosec // as the registry does
}

func blobPath(registry *lab.Registry, hex string) string {
	return filepath.Join(registry.Storage, "docker/registry/v2/blobs/sha256", hex[:2], hex)
}

// Everything that is odd in a registry, each with what becomes of it.
func TestS5_OddRegistry(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	repository := func(name string) name.Repository { return nameRepository(t, registry, name) }
	hexOf := func(what interface{ Digest() (v1.Hash, error) }) string { return labtest.Must(what.Digest())(t).Hex }

	// A multi-arch index with an attestation, a signature under cosign's tag, and a referrer, of
	// something that stays; the same of something that goes.
	family := func(repo, tag string) []string {
		x, y := small(t), small(t)
		attestation := mutate.Annotations(small(t), map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": "sha256:" + hexOf(x)}).(v1.Image)
		index := mutate.AppendManifests(empty.Index,
			mutate.IndexAddendum{Add: x, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
			mutate.IndexAddendum{Add: y, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
			mutate.IndexAddendum{Add: attestation, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}})
		putImage(t, registry, repo+":"+tag, index)
		digest := labtest.Must(index.Digest())(t)
		signature := small(t)
		putImage(t, registry, repo+":sha256-"+digest.Hex+".sig", signature)
		desc := v1.Descriptor{MediaType: types.OCIImageIndex, Digest: digest, Size: int64(len(labtest.Must(index.RawManifest())(t)))}
		referrer := mutate.Subject(mutate.MediaType(small(t), types.OCIManifestSchema1), desc).(v1.Image)
		labtest.Must(0, remote.Write(repository(repo).Digest("sha256:"+hexOf(referrer)), referrer, remote.WithContext(ctx)))(t)
		return []string{digest.Hex, hexOf(x), hexOf(y), hexOf(attestation), hexOf(signature), hexOf(referrer)}
	}
	stays, goes := family("app", "v1"), family("cache/app", "v1")
	docker := mutate.MediaType(small(t), types.DockerManifestSchema2)
	putImage(t, registry, "app:docker", docker)
	putImage(t, registry, "cache/docker:main", mutate.MediaType(small(t), types.DockerManifestSchema2))

	// A repository that has a mounted layer and nothing else.
	mounted := labtest.Must(docker.Layers())(t)[0]
	mountedHex := hexOf(mounted)
	writeLink(t, registry, "cache/mounted/_layers/sha256/"+mountedHex, "sha256:"+mountedHex)
	// A manifest without bytes, with a tag; one that is cut, with a layer that only it may name.
	cut := small(t)
	putImage(t, registry, "doubt:cut", cut)
	cutHex := hexOf(cut)
	raw := labtest.Must(cut.RawManifest())(t)
	putImage(t, registry, "empty:main", small(t))
	zero := small(t)
	putImage(t, registry, "empty:zero", zero)
	zeroHex := hexOf(zero)
	write(t, filepath.Join(blobPath(registry, zeroHex), "data"), "")
	write(t, filepath.Join(blobPath(registry, cutHex), "data"), string(raw[:len(raw)/2]))
	// A repository without layers, a directory without data, a link without a blob, a tag that
	// leads nowhere, and an upload that was left.
	putImage(t, registry, "nolayers:main", small(t))
	labtest.Must(0, os.RemoveAll(filepath.Join(registry.Storage, "docker/registry/v2/repositories/nolayers/_layers")))(t)
	none := strings.Repeat("ab", 32)
	labtest.Must(0, os.MkdirAll(blobPath(registry, none), 0o755))(t)
	lost := strings.Repeat("cd", 32)
	writeLink(t, registry, "app/_layers/sha256/"+lost, "sha256:"+lost)
	writeLink(t, registry, "app/_manifests/tags/nowhere/current", "sha256:"+strings.Repeat("ef", 32))
	writeLink(t, registry, "app/_manifests/tags/ghost/index/sha256/"+lost, "sha256:"+lost)
	write(t, filepath.Join(registry.Storage, "docker/registry/v2/repositories/app/_uploads/left/data"), "half of it")

	j := keeper(t, l, registry, 8*day, nil)
	o := j.run(t, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}, Force: true})
	if o.finished.GetState() != janitorv1.RunState_RUN_STATE_SUCCEEDED {
		t.Errorf("%v", o.finished)
	}
	removed := map[string]string{}
	for _, v := range o.removed {
		if hex := strings.TrimPrefix(v.GetItem().GetDigest(), "sha256:"); removed[hex] == "" { // a manifest's bytes go later
			removed[hex] = word(v)
		}
	}
	for _, hex := range stays {
		if removed[hex] != "" {
			t.Errorf("%s of the family that stays: %s", hex, removed[hex])
		}
	}
	for _, hex := range goes {
		if removed[hex] == "" {
			t.Errorf("%s of the family that goes is left", hex)
		}
	}
	for what, want := range map[string]string{zeroHex: "dangling", cutHex: "", none: "unreached", lost: "dangling", "nowhere": "dangling", "ghost": "dangling", "left": "abandoned", mountedHex: "unreached"} {
		if removed[what] != want {
			t.Errorf("%s: %q, want %q", what, removed[what], want)
		}
	}
	for _, layer := range labtest.Must(cut.Layers())(t) {
		if _, err := os.Stat(filepath.Join(blobPath(registry, hexOf(layer)), "data")); err != nil {
			t.Errorf("what the manifest that is cut may name: %v", err)
		}
	}
	for path, there := range map[string]bool{
		"cache/mounted": false, "cache/app": false, "cache/docker": false, "app/_manifests/tags/nowhere": false, "app/_manifests/tags/ghost": false, "app/_uploads/left": false, "app/_layers/sha256/" + lost + "/link": false, "nolayers": true,
	} {
		if _, err := os.Stat(filepath.Join(registry.Storage, "docker/registry/v2/repositories", path)); (err == nil) != there {
			t.Errorf("%s: %v", path, err)
		}
	}
	kinds := map[string]bool{}
	for _, d := range o.defects {
		kinds[strings.TrimPrefix(d.GetKind().String(), "DEFECT_KIND_")+" "+d.GetRepository()] = true
	}
	for _, want := range []string{"BAD_MANIFEST doubt", "MISSING_BLOB nolayers"} {
		if !kinds[want] {
			t.Errorf("no defect %q: %v", want, kinds)
		}
	}
	for _, ref := range []string{"app:v1", "app:docker", "empty:main", "app:sha256-" + stays[0] + ".sig"} {
		if err := pullWhole(ctx, registry.Addr, ref); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
	}
	for _, hex := range stays { // parts, attestation, signature and referrer too
		if _, err := remote.Get(repository("app").Digest("sha256:"+hex), remote.WithContext(ctx)); err != nil {
			t.Errorf("%s of the family that stays: %v", hex, err)
		}
	}

	// As an operator sees it, and verifies it.
	kiln := func(args ...string) (lab.Output, error) {
		return lab.Exec(ctx, lab.Command{Path: labtest.Must(lab.Bin("kiln"))(t), Args: append([]string{"janitor"}, args...), Env: []string{"KILN_JANITOR=" + j.Addr}})
	}
	for command, want := range map[string]string{
		"runs":       `(?m)^\S+ +succeeded +demand `,
		"quarantine": `(?m)^\S+ +manifest cache/app:v1 [\s\S]*in quarantine: \d+ manifests`,
		"purge":      `would purge \d+ manifests`,
		"policy get": `(?m)^rules:`,
		"run":        `would remove 0 manifests`,
	} {
		out, err := kiln(strings.Fields(command)...)
		if err != nil || !regexp.MustCompile(want).MatchString(out.Stdout) {
			t.Errorf("kiln janitor %s: %v\n%s", command, err, out.Stdout)
		}
	}
	write(t, filepath.Join(blobPath(registry, hexOf(mounted)), "data"), "other bytes")
	out, err := kiln("verify", "--max-rate", "100MB")
	if err == nil || !strings.Contains(out.Stdout, "corrupt_blob") || !strings.Contains(out.Stdout, "app:docker") || !strings.Contains(out.Stdout, "missing_blob nolayers") {
		t.Errorf("kiln janitor verify: %v\n%s", err, out.Stdout)
	}
	back := labtest.Must(kiln("restore", "--filter", `repository = "cache/app"`))(t)
	if !strings.Contains(back.Stdout, registry.Addr+"/cache/app:v1") {
		t.Errorf("restored:\n%s", back.Stdout)
	}
	labtest.Must(0, pullWhole(ctx, registry.Addr, "cache/app:v1"))(t)
	labtest.Must(kiln("purge", "--force"))(t)
	if out := labtest.Must(kiln("quarantine"))(t); !strings.Contains(out.Stdout, "in quarantine: 0 manifests and 0 blobs") {
		t.Errorf("after the purge:\n%s", out.Stdout)
	}
}

func nameRepository(t *testing.T, registry *lab.Registry, repo string) name.Repository {
	t.Helper()
	return labtest.Must(name.NewRepository(registry.Addr+"/"+repo, name.Insecure))(t)
}

// One janitor at a time runs on a storage, and one run can be cancelled, followed by its
// request id, and bounded. `kiln-janitor run --once` says by its exit code what came of it.
func TestS5_RunsOneAtATime(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	for i := range 4 {
		putImage(t, registry, fmt.Sprintf("cache/a:%d", i), small(t))
	}
	putImage(t, registry, "app:v1", small(t))
	slow := keeper(t, l, registry, 8*day, func(cfg *configv1.JanitorConfig) { cfg.Settle = durationpb.New(30 * time.Second) })
	other := keeper(t, l, registry, 8*day, nil)
	stream := labtest.Must(slow.api.Run(ctx, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}, Force: true, RequestId: "one"}))(t)
	id := labtest.Must(stream.Recv())(t).GetStarted().GetId()
	labtest.Eventually(t, 10*time.Second, "the wait", func() bool {
		return labtest.Must(slow.api.GetRun(ctx, &janitorv1.GetRunRequest{RunId: id}))(t).GetRun().GetProgress().GetPhase() == janitorv1.RunPhase_RUN_PHASE_SETTLE
	})
	for _, j := range []janitor{slow, other} {
		_, err := j.tryRun(ctx, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}, Force: true})
		refused(t, err, codes.AlreadyExists, "ALREADY_EXISTS", "")
	}
	followed := labtest.Must(slow.api.Run(ctx, &janitorv1.RunRequest{RequestId: "one"}))(t)
	if got := labtest.Must(followed.Recv())(t).GetStarted().GetId(); got != id {
		t.Errorf("followed %s, want %s", got, id)
	}
	if at := labtest.Must(slow.api.GetSchedule(ctx, &janitorv1.GetScheduleRequest{}))(t); at.GetRunning() != id || at.GetEnabled() {
		t.Errorf("%v", at)
	}
	cancelled := labtest.Must(slow.api.CancelRun(ctx, &janitorv1.CancelRunRequest{RunId: id}))(t).GetRun()
	if cancelled.GetState() != janitorv1.RunState_RUN_STATE_CANCELLED || cancelled.GetRemoved().GetManifests() != 4 || cancelled.GetRemoved().GetSizeBytes() != 0 {
		t.Errorf("%v", cancelled)
	}
	links := labtest.Must(filepath.Glob(filepath.Join(registry.Storage, "docker/registry/v2/repositories/cache/a/_layers/sha256/*/link")))(t)
	if len(links) != 12 {
		t.Errorf("%d links are shown again, want 12", len(links))
	}
	labtest.Must(other.api.Restore(ctx, &janitorv1.RestoreRequest{What: &janitorv1.RestoreRequest_RunId{RunId: id}}))(t)
	labtest.Must(0, slow.Stop(ctx))(t)
	labtest.Must(0, other.Stop(ctx))(t)

	// Once, and in parts.
	file := policyFile(t, "max_build_time: 0s\nbudget: {manifests: 3}\nrules:\n- {name: cache, match: {repositories: ['cache/**']}, keep: {age: 168h}}\n")
	once := func(args ...string) (lab.Output, error) {
		return lab.Exec(ctx, lab.Command{
			Path: labtest.Must(lab.Bin("failpoints/kiln-janitor"))(t), Env: append(lab.OTLPEnv("", ""), "KILN_CLOCK="+(30*day).String()),
			Args: append([]string{
				"run", "--once", "--set", "registry.address=" + registry.Addr, "--set", "registry.storage_root=" + registry.Storage, "--set", "state_dir=" + t.TempDir(),
				"--set", "settle=0.1s", "--set", "policy_file=" + file, "--set", "schedule.max_removal_percent=100",
			}, args...),
		})
	}
	if out, err := once("--dry-run"); err != nil || !strings.Contains(out.Stdout, "would remove 3 manifests") {
		t.Errorf("%v\n%s%s", err, out.Stdout, out.Stderr)
	}
	out, err := once("--format", "json")
	if code := exitCode(err); code != 2 {
		t.Errorf("in part: exit code %d: %v\n%s", code, err, out.Stderr)
	}
	var told struct {
		State   string
		Removed struct{ Manifests string }
	}
	if err := json.NewDecoder(bytes.NewReader([]byte(out.Stdout))).Decode(&told); err != nil || told.State != "RUN_STATE_PARTIAL" || told.Removed.Manifests != "3" {
		t.Errorf("%v\n%s", err, out.Stdout)
	}
	if out, err := once(); err != nil || !strings.Contains(out.Stdout, "removed 1 manifests") {
		t.Errorf("the rest: %v\n%s%s", err, out.Stdout, out.Stderr)
	}
	labtest.Must(0, registry.Stop(ctx))(t)
	if out, err := once(); exitCode(err) != 1 {
		t.Errorf("without a registry: %v\n%s%s", err, out.Stdout, out.Stderr)
	}
}

// The schedule runs by itself, and the policy can be replaced.
func TestS5_ScheduleAndPolicy(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	putImage(t, registry, "cache/a:main", small(t))
	putImage(t, registry, "app:old", small(t))
	j := keeper(t, l, registry, 8*day, func(cfg *configv1.JanitorConfig) {
		cfg.Schedule = &configv1.ScheduleConfig{Cron: "@every 1s", Jitter: durationpb.New(0), MaxRemovalPercent: proto.Int32(100)}
	})
	scheduled := func(fits func(*janitorv1.Run) bool) func() bool {
		return func() bool {
			for _, r := range labtest.Must(j.api.ListRuns(ctx, &janitorv1.ListRunsRequest{Filter: `trigger = SCHEDULE AND state = SUCCEEDED`}))(t).GetRuns() {
				if fits(r) {
					return true
				}
			}
			return false
		}
	}
	// The blobs of what it removes wait for builds: an hour, by default.
	labtest.Eventually(t, 20*time.Second, "a run", scheduled(func(r *janitorv1.Run) bool {
		return r.GetRemoved().GetManifests() == 1 && r.GetWaiting().GetSizeBytes() > 0 && r.GetRemoved().GetSizeBytes() == 0
	}))
	if at := labtest.Must(j.api.GetSchedule(ctx, &janitorv1.GetScheduleRequest{}))(t); !at.GetEnabled() || at.GetNextRunTime() == nil || at.GetCron() != "@every 1s" {
		t.Errorf("%v", at)
	}
	_, err := j.api.UpdatePolicy(ctx, &janitorv1.UpdatePolicyRequest{Source: &janitorv1.UpdatePolicyRequest_Text{Text: "rules: []\n"}})
	refused(t, err, codes.FailedPrecondition, "WRONG_STATE", "")
	_, err = j.api.UpdatePolicy(ctx, &janitorv1.UpdatePolicyRequest{Source: &janitorv1.UpdatePolicyRequest_Text{Text: "rules:\n- {name: x, keep: {age: 0s}}\n"}})
	refused(t, err, codes.FailedPrecondition, "WRONG_STATE", "")
	_, err = j.api.UpdatePolicy(ctx, &janitorv1.UpdatePolicyRequest{Source: &janitorv1.UpdatePolicyRequest_Text{Text: "rules:\n- {name: x, keap: {}}\n"}})
	if refused(t, err, codes.InvalidArgument, "INVALID_FIELD", "text"); !strings.Contains(err.Error(), "2:") {
		t.Errorf("%v: without line and column", err)
	}
	text := "max_build_time: 0s\nrules:\n- {name: old, match: {tags: [old]}, keep: {push_age: 24h}}\n"
	set := labtest.Must(j.api.UpdatePolicy(ctx, &janitorv1.UpdatePolicyRequest{Source: &janitorv1.UpdatePolicyRequest_Text{Text: text}, ExpectedVersion: 1}))(t)
	if set.GetPolicy().GetVersion() != 2 {
		t.Errorf("%v", set)
	}
	_, err = j.api.UpdatePolicy(ctx, &janitorv1.UpdatePolicyRequest{Source: &janitorv1.UpdatePolicyRequest_Text{Text: text}, ExpectedVersion: 1})
	refused(t, err, codes.Aborted, "WRONG_STATE", "")
	labtest.Eventually(t, 20*time.Second, "a run by the new policy", scheduled(func(r *janitorv1.Run) bool {
		return r.GetPolicyVersion() == 2 && r.GetRemoved().GetManifests() == 1 && r.GetRemoved().GetSizeBytes() > 0
	}))
	if err := pullWhole(ctx, registry.Addr, "app:old"); err == nil {
		t.Error("it is there")
	}
	for range 2 { // it is ended and comes back with what it knew
		labtest.Must(0, j.Stop(ctx))(t)
		labtest.Must(0, j.Start(ctx))(t)
		if p := labtest.Must(j.api.GetPolicy(ctx, &janitorv1.GetPolicyRequest{}))(t).GetPolicy(); p.GetVersion() != 2 {
			t.Errorf("%v", p)
		}
	}
}

// exitCode is that of a command that was run; 0 without an error, -1 for one that did not run.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	return -1
}

// Where the storage is out of reach, manifests go through the API once they were not used for
// long enough since they were seen first, and the registry's own collection frees the space.
func TestS5_APIOnly(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	putImage(t, registry, "cache/a:main", small(t))
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: small(t)}, mutate.IndexAddendum{Add: small(t)})
	putImage(t, registry, "cache/b:main", index)
	putImage(t, registry, "cache/b:used", small(t))
	putImage(t, registry, "app:v1", small(t))
	state := t.TempDir()
	start := func(moved time.Duration) janitor {
		return keeper(t, l, registry, moved, func(cfg *configv1.JanitorConfig) {
			cfg.Registry.StorageRoot, cfg.StateDir = "", state
		})
	}
	j := start(30 * day)
	if o := j.run(t, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}, Force: true}); len(o.removed) > 0 || o.finished.GetReach() != janitorv1.Reach_REACH_API {
		t.Errorf("seen for the first time: %v", o.finished)
	}
	labtest.Must(0, j.Stop(ctx))(t)
	j = start(38 * day)
	labtest.Must(j.api.RecordUse(ctx, &janitorv1.RecordUseRequest{Uses: []*janitorv1.Use{{Reference: registry.Addr + "/cache/b:used", Kind: janitorv1.UseKind_USE_KIND_EXPORT}}}))(t)
	plan, _ := j.planned(t, &janitorv1.PlanRunRequest{Policy: weekly()})
	if len(plan.GetWarnings()) == 0 || plan.GetReach() != janitorv1.Reach_REACH_API {
		t.Errorf("%v", plan)
	}
	o := j.run(t, &janitorv1.RunRequest{By: &janitorv1.RunRequest_PlanDigest{PlanDigest: plan.GetDigest()}, Force: true})
	if o.finished.GetState() != janitorv1.RunState_RUN_STATE_SUCCEEDED || o.finished.GetRemoved().GetManifests() != 4 || o.finished.GetRemoved().GetSizeBytes() != plan.GetRemove().GetSizeBytes() {
		t.Errorf("%v", o.finished)
	}
	_, before := stored(t, registry.Storage)
	labtest.Must(0, registry.CollectGarbage(ctx))(t)
	if _, after := stored(t, registry.Storage); before-after != plan.GetRemove().GetSizeBytes() {
		t.Errorf("%d bytes are free, and the plan said %v", before-after, plan.GetRemove())
	}
	for ref, there := range map[string]bool{"cache/a:main": false, "cache/b:main": false, "cache/b:used": true, "app:v1": true} {
		if err := pullWhole(ctx, registry.Addr, ref); (err == nil) != there {
			t.Errorf("%s: %v", ref, err)
		}
	}
	_, err := j.api.ListQuarantine(ctx, &janitorv1.ListQuarantineRequest{})
	refused(t, err, codes.FailedPrecondition, "WRONG_STATE", "")
}
