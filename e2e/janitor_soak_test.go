package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
)

// busyRegistry is a registry under load, and what it has acknowledged.
type busyRegistry struct {
	*lab.Registry
	daemon *lab.Buildkitd
	base   string
	load   load
	layers []v1.Layer // that images share

	mu    sync.Mutex
	acked map[string]ack // by reference
	locks map[string]*sync.Mutex

	pushes, refused, pulls, builds, hiccups atomic.Int64
}

// ack is the last push of a tag that the registry has accepted.
type ack struct {
	digest string
	began  time.Time
}

// load is how many do what; after how many runs that came to their end one is killed, and within
// which time; and how many come to their end at least.
type load struct {
	pushers, exporters, pullers int
	killAfter                   int
	killWithin                  time.Duration
	runs                        int
}

// fullLoad is as much as a registry on a disk takes.
func fullLoad() load {
	return load{pushers: 8, exporters: 4, pullers: 2, killAfter: 2, killWithin: 1500 * time.Millisecond, runs: 3}
}

// unused is how long what is not kept is kept, in the policy of the soak.
const unused = 4 * time.Second

func startBusy(t *testing.T, l *lab.Lab, opts lab.RegistryOptions, of load) *busyRegistry {
	t.Helper()
	ctx := labtest.Context(t, time.Minute)
	b := &busyRegistry{Registry: labtest.Must(l.StartRegistry(ctx, opts))(t), load: of, acked: map[string]ack{}, locks: map[string]*sync.Mutex{}}
	b.daemon = labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{Registries: []string{b.Addr}}))(t)
	b.base = labtest.Must(image.PushBase(ctx, b.Addr))(t)
	for range 16 {
		b.layers = append(b.layers, labtest.Must(random.Layer(20_000, "application/vnd.oci.image.layer.v1.tar+gzip"))(t))
	}
	return b
}

// use pushes, pulls, builds and moves tags until ctx ends. What is acknowledged and not to
// be pulled whole, also not when it is tried again, is an error.
func (b *busyRegistry) use(ctx context.Context, t *testing.T) {
	t.Helper()
	var group sync.WaitGroup
	for i := range b.load.pushers {
		group.Go(func() {
			for ctx.Err() == nil {
				b.push(ctx, t, i)
			}
		})
	}
	for i := range b.load.exporters {
		dir := t.TempDir()
		group.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				b.export(ctx, t, dir, i, n)
			}
		})
	}
	for range b.load.pullers {
		group.Go(func() {
			for ctx.Err() == nil {
				b.pull(ctx, t)
			}
		})
	}
	group.Wait()
}

// own makes the caller the only one that moves a tag, so that the last push is known.
func (b *busyRegistry) own(ref string) *sync.Mutex {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.locks[ref] == nil {
		b.locks[ref] = &sync.Mutex{}
	}
	return b.locks[ref]
}

// push pushes an image of layers that others have too, and some of its own; an index of
// two; or one that is mounted from another repository.
func (b *busyRegistry) push(ctx context.Context, t *testing.T, pusher int) {
	repository := fmt.Sprintf("soak/%c", 'a'+rand.IntN(4))
	tag := fmt.Sprintf("keep-%d", rand.IntN(6))
	if rand.IntN(2) == 0 {
		tag = fmt.Sprintf("tmp-%d", rand.IntN(30))
	}
	ref := repository + ":" + tag
	lock := b.own(ref)
	lock.Lock()
	defer lock.Unlock()
	parsed := labtest.Must(name.ParseReference(b.Addr+"/"+ref, name.Insecure))(t)
	what, err := b.something(ctx, pusher)
	if err != nil {
		b.refused.Add(1) // it was to be mounted from what is gone meanwhile
		return
	}
	began := time.Now()
	err = remote.Push(parsed, what, remote.WithContext(ctx), remote.WithJobs(2))
	if err != nil {
		if ctx.Err() == nil {
			b.refused.Add(1)
			if answer, ok := errors.AsType[*transport.Error](err); !ok || answer.StatusCode != 400 && answer.StatusCode != 404 && answer.StatusCode != 500 {
				t.Errorf("push of %s: %v", ref, err)
			}
		}
		b.mu.Lock()
		delete(b.acked, ref) // it may have been moved or not
		b.mu.Unlock()
		return
	}
	digest := labtest.Must(what.(interface{ Digest() (v1.Hash, error) }).Digest())(t)
	b.pushes.Add(1)
	b.mu.Lock()
	b.acked[ref] = ack{digest.String(), began}
	b.mu.Unlock()
}

func (b *busyRegistry) something(ctx context.Context, pusher int) (remote.Taggable, error) {
	if rand.IntN(5) == 0 { // mounted: its layers are known to be in another repository
		b.mu.Lock()
		var from string
		for ref := range b.acked {
			from = ref
			break
		}
		b.mu.Unlock()
		if from != "" {
			ref, err := name.ParseReference(b.Addr+"/"+from, name.Insecure)
			if err != nil {
				return nil, err
			}
			desc, err := remote.Get(ref, remote.WithContext(ctx))
			if err != nil || desc.MediaType.IsIndex() {
				return b.image(pusher)
			}
			return desc.Image()
		}
	}
	if rand.IntN(5) == 0 {
		x, err := b.image(pusher)
		if err != nil {
			return nil, err
		}
		y, err := b.image(pusher)
		return mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: x}, mutate.IndexAddendum{Add: y}), err
	}
	return b.image(pusher)
}

func (b *busyRegistry) image(pusher int) (v1.Image, error) {
	layers := []v1.Layer{b.layers[rand.IntN(len(b.layers))], b.layers[rand.IntN(len(b.layers))]}
	if layers[0] == layers[1] {
		layers = layers[:1]
	}
	if rand.IntN(3) == 0 {
		fresh, err := random.Layer(10_000, "application/vnd.oci.image.layer.v1.tar+gzip")
		if err != nil {
			return nil, err
		}
		layers = append(layers, fresh)
	}
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, "application/vnd.oci.image.manifest.v1+json"), layers...)
	if err != nil || rand.IntN(2) == 0 {
		return img, err // the same image again and again
	}
	return mutate.Config(img, v1.Config{Labels: map[string]string{"pusher": fmt.Sprint(pusher), "n": fmt.Sprint(rand.IntN(1000))}})
}

// export builds something with a cache in the registry.
func (b *busyRegistry) export(ctx context.Context, t *testing.T, dir string, exporter, n int) {
	ref := fmt.Sprintf("cache/soak-%d:main", exporter)
	err := os.WriteFile(filepath.Join(dir, "Dockerfile"), fmt.Appendf(nil, "FROM %s\nRUN echo %d >/x; head -c 5000 /dev/urandom >/y\nRUN echo %d >/z\n", b.base, n%3, n), 0o600)
	if err != nil {
		t.Error(err)
	}
	cache := "type=registry,ref=" + b.Addr + "/" + ref
	out, err := lab.Exec(ctx, buildctl(t, b.daemon.Addr, dir, "--export-cache", cache+",mode=max,image-manifest=true,oci-mediatypes=true", "--import-cache", cache))
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		b.refused.Add(1)
		if !strings.Contains(out.Stderr, "blob unknown") && !strings.Contains(out.Stderr, "not found") && !strings.Contains(out.Stderr, "400") && !strings.Contains(out.Stderr, "500") {
			t.Errorf("build of exporter %d: %v\n%s", exporter, err, out.Stderr)
		}
		return
	}
	b.builds.Add(1)
}

// pull pulls something that is there for good.
func (b *busyRegistry) pull(ctx context.Context, t *testing.T) {
	ref := ""
	b.mu.Lock()
	for one := range b.acked {
		if strings.Contains(one, ":keep-") {
			ref = one
			break
		}
	}
	b.mu.Unlock()
	if ref == "" {
		time.Sleep(10 * time.Millisecond)
		return
	}
	lock := b.own(ref)
	lock.Lock() // nobody moves it meanwhile
	defer lock.Unlock()
	b.mu.Lock()
	_, still := b.acked[ref]
	b.mu.Unlock()
	if !still {
		return
	}
	var err error
	for try := range 20 {
		if err = pullWhole(ctx, b.Addr, ref); err == nil || ctx.Err() != nil {
			b.pulls.Add(1)
			return
		}
		if try == 0 {
			b.hiccups.Add(1)
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Errorf("pull of %s: %v", ref, err)
}

// broken are the tags that cannot be pulled whole, of those that have to be there, and of
// those that are.
func (b *busyRegistry) broken(ctx context.Context, t *testing.T, since time.Time) (all []string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for ref, a := range b.acked {
		parsed := labtest.Must(name.ParseReference(b.Addr+"/"+ref, name.Insecure))(t)
		desc, err := remote.Head(parsed, remote.WithContext(ctx))
		if err != nil {
			if strings.Contains(ref, ":keep-") || a.began.After(since) {
				all = append(all, fmt.Sprintf("%s: it is gone: %v", ref, err))
			}
			continue
		}
		if desc.Digest.String() != a.digest {
			all = append(all, fmt.Sprintf("%s: it is %s, and %s was acknowledged", ref, desc.Digest, a.digest))
		}
	}
	for _, repository := range labtest.Must(remote.Catalog(ctx, labtest.Must(name.NewRegistry(b.Addr, name.Insecure))(t)))(t) {
		repo := labtest.Must(name.NewRepository(b.Addr+"/"+repository, name.Insecure))(t)
		tags, _ := remote.List(repo, remote.WithContext(ctx)) // one without any is an error
		for _, tag := range tags {
			if err := pullWhole(ctx, b.Addr, repository+":"+tag); err != nil {
				all = append(all, fmt.Sprintf("%s:%s: %v", repository, tag, err))
			}
		}
	}
	return all
}

// soakPolicy keeps for seconds what the default keeps for days.
func soakPolicy() *janitorv1.Policy {
	return &janitorv1.Policy{
		Rules: []*janitorv1.Rule{
			{Name: "kept", Match: &janitorv1.Match{Tags: []string{"keep-*"}}, Protect: true},
			{Name: "all", Match: &janitorv1.Match{Repositories: []string{"soak/**", "cache/**"}}, Keep: &janitorv1.Keep{Age: durationpb.New(unused), DropEmptyRepositories: true}},
		},
		BlobGrace: durationpb.New(time.Second), MaxBuildTime: durationpb.New(0), Quarantine: durationpb.New(15 * time.Second), UploadAge: durationpb.New(time.Hour),
	}
}

// Four BuildKit cache exporters, eight pushers of images that share, mount and push layers
// again, pullers and movers of tags, against a stock registry, while the janitor runs back
// to back with ages of seconds and is killed at random: what was acknowledged, and is not
// old, can be pulled whole.
func TestS5_NothingBreaksUnderLoad(t *testing.T) {
	breakNothing(t, labtest.New(t), soakTime(t, time.Minute), lab.RegistryOptions{}, fullLoad())
}

// The same with a registry whose storage is in S3, where nothing can be moved by a rename.
func TestS5_NothingBreaksUnderLoadInS3(t *testing.T) {
	l := labtest.New(t)
	opts := lab.RegistryOptions{S3: labtest.Must(l.StartS3(labtest.Context(t, time.Minute)))(t)}
	breakNothing(t, l, soakTime(t, 45*time.Second), opts, load{pushers: 3, exporters: 1, pullers: 1, killAfter: 1, killWithin: 6 * time.Second, runs: 1})
}

func breakNothing(t *testing.T, l *lab.Lab, span time.Duration, opts lab.RegistryOptions, of load) {
	t.Helper()
	b := startBusy(t, l, opts, of)
	j := keeper(t, l, b.Registry, 0, func(cfg *configv1.JanitorConfig) { cfg.Settle = durationpb.New(300 * time.Millisecond) })
	var done int
	soaked(t, &done)

	ctx := labtest.Context(t, span+4*time.Minute)
	loading, stop := context.WithTimeout(ctx, span)
	defer stop()
	var janitor sync.WaitGroup
	var runs, kills int
	var removed, blobs int64
	lastRun := time.Now()
	janitor.Go(func() {
		ended := 0 // runs since the last kill
		for loading.Err() == nil {
			running, cancel := context.WithTimeout(loading, 40*time.Second)
			kill := make(chan struct{})
			if ended >= of.killAfter {
				ended = 0
				go func() {
					defer close(kill)
					select {
					case <-time.After(rand.N(of.killWithin)):
						if err := j.Kill(); err != nil {
							t.Error(err)
						}
					case <-loading.Done():
					}
				}()
			} else {
				close(kill)
			}
			lastRun = time.Now()
			o, err := j.tryRun(running, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: soakPolicy()}, Force: true, ForceAll: true})
			cancel()
			<-kill
			if r := o.finished; r != nil && err == nil {
				runs++
				ended++
				removed, blobs = removed+r.GetRemoved().GetManifests(), blobs+r.GetRemoved().GetBlobs()
				if r.GetState() != janitorv1.RunState_RUN_STATE_SUCCEEDED {
					t.Errorf("run: %v", r)
				}
			}
			select {
			case <-j.Done():
				kills++
				if err := j.Start(ctx); err != nil {
					t.Error(err)
					return
				}
			default:
				if err != nil && loading.Err() == nil && status.Code(err) != codes.DeadlineExceeded && !strings.Contains(err.Error(), "under way") { // the span may have ended
					t.Errorf("run: %v", err)
				}
				if err != nil {
					time.Sleep(50 * time.Millisecond) // the one that was taken up is under way
				}
			}
		}
	})
	b.use(loading, t)
	janitor.Wait()

	// What was left unfinished is put right when a janitor comes; then nothing runs.
	var last swept
	labtest.Eventually(t, 2*time.Minute, "a run of its own", func() bool { // the one under way goes on without its caller
		lastRun = time.Now()
		var err error
		last, err = j.tryRun(ctx, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: soakPolicy()}, Force: true, ForceAll: true})
		return err == nil
	})
	removed, blobs = removed+last.finished.GetRemoved().GetManifests(), blobs+last.finished.GetRemoved().GetBlobs()
	broken := b.broken(ctx, t, lastRun.Add(-unused+time.Second).Add(time.Since(lastRun)))
	for _, one := range broken {
		t.Error(one)
	}
	done = int(b.pushes.Load() + b.pulls.Load() + b.builds.Load())
	t.Logf("%d pushes (%d refused), %d pulls (%d at the second try), %d builds; %d runs, %d kills, %d manifests and %d blobs removed; %d manifests resolved, %d broken",
		b.pushes.Load(), b.refused.Load(), b.pulls.Load(), b.hiccups.Load(), b.builds.Load(), runs, kills, removed, blobs, last.finished.GetVerifiedManifests(), len(broken))
	if b.pushes.Load() < 50 || b.pulls.Load() < 20 || b.builds.Load() < int64(of.exporters) || runs < of.runs || kills < 1 || blobs < 10 {
		t.Error("that was no load")
	}
	if last.finished.GetBrokenManifests() != 0 {
		t.Errorf("the janitor says: %v", last.finished)
	}
}

// The same load with the registry's own garbage collection in the janitor's place does break
// images: the checker is known to see it.
func TestS5_RegistryGarbageCollectBreaksImages(t *testing.T) {
	l := labtest.New(t)
	b := startBusy(t, l, lab.RegistryOptions{}, fullLoad())
	ctx := labtest.Context(t, 2*time.Minute)
	for round := range 6 {
		loading, stop := context.WithTimeout(ctx, 5*time.Second)
		var gc sync.WaitGroup
		collected := 0
		gc.Go(func() {
			for loading.Err() == nil {
				if err := b.CollectGarbage(loading, "--delete-untagged"); err == nil { // it fails, too, over what goes meanwhile
					collected++
				}
			}
		})
		b.loadOnly(loading, t)
		gc.Wait()
		stop()
		if broken := b.broken(ctx, t, time.Now()); len(broken) > 0 {
			t.Logf("round %d: %d pushes, %d collections; %d tags are broken, such as %s", round+1, b.pushes.Load(), collected, len(broken), broken[0])
			return
		}
	}
	t.Errorf("%d pushes, and nothing broke: the checker sees nothing, or the load is none", b.pushes.Load())
}

// loadOnly pushes, without a word on what cannot be pulled meanwhile.
func (b *busyRegistry) loadOnly(ctx context.Context, t *testing.T) {
	t.Helper()
	var group sync.WaitGroup
	for i := range b.load.pushers {
		group.Go(func() {
			for ctx.Err() == nil {
				b.push(ctx, t, i)
			}
		})
	}
	group.Wait()
}
