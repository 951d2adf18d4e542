package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	"github.com/kilnbuild/kiln/pkg/failpoint/find"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
)

// swept is what a run told.
type swept struct {
	started, finished *janitorv1.Run
	plan              *janitorv1.Plan
	removed, kept     []*janitorv1.Verdict
	defects           []*janitorv1.Defect
	phases            []string
}

// runs a run to its end.
func (j janitor) run(t *testing.T, req *janitorv1.RunRequest) swept {
	t.Helper()
	o, err := j.tryRun(labtest.Context(t, 3*time.Minute), req)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func (j janitor) tryRun(ctx context.Context, req *janitorv1.RunRequest) (o swept, err error) {
	stream, err := j.api.Run(ctx, req)
	if err != nil {
		return o, err
	}
	for {
		res, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return o, nil
		}
		if err != nil {
			return o, err
		}
		switch e := res.GetEvent().(type) {
		case *janitorv1.RunResponse_Started:
			o.started = e.Started
		case *janitorv1.RunResponse_Planned:
			o.plan = e.Planned
		case *janitorv1.RunResponse_Progress:
			phase := strings.TrimPrefix(e.Progress.GetPhase().String(), "RUN_PHASE_")
			if len(o.phases) == 0 || o.phases[len(o.phases)-1] != phase {
				o.phases = append(o.phases, phase)
			}
		case *janitorv1.RunResponse_Removed:
			o.removed = append(o.removed, e.Removed)
		case *janitorv1.RunResponse_Kept:
			o.kept = append(o.kept, e.Kept)
		case *janitorv1.RunResponse_Defect:
			o.defects = append(o.defects, e.Defect)
		case *janitorv1.RunResponse_Finished:
			o.finished = e.Finished
		}
	}
}

// keeper is a janitor of a registry with a moved clock.
func keeper(t *testing.T, l *lab.Lab, registry *lab.Registry, moved time.Duration, change func(*configv1.JanitorConfig), opts ...lab.ServiceOptions) janitor {
	t.Helper()
	cfg := &configv1.JanitorConfig{
		Registry: &configv1.RegistryConfig{Address: registry.Addr, PlainHttp: true, StorageRoot: registry.Storage}, CheckInterval: durationpb.New(time.Hour),
	}
	if registry.S3 != nil {
		cfg.Registry.StorageRoot, cfg.Registry.StorageConfig = "", registry.ConfigFile
	}
	if change != nil {
		change(cfg)
	}
	o := lab.ServiceOptions{Clock: moved, Unhealthy: true}
	if len(opts) > 0 {
		o.Env = opts[0].Env
	}
	service := labtest.Must(l.StartJanitor(labtest.Context(t, time.Minute), cfg, o))(t)
	conn := labtest.Must(lab.Dial(service.Addr))(t)
	l.OnClose("connection", func(context.Context) error { return conn.Close() })
	return janitor{Service: service, api: janitorv1.NewJanitorServiceClient(conn)}
}

// puts an image, or an index, into a registry.
func putImage(t *testing.T, registry *lab.Registry, ref string, what remote.Taggable) {
	t.Helper()
	r := labtest.Must(name.ParseReference(registry.Addr+"/"+ref, name.Insecure))(t)
	labtest.Must(0, remote.Push(r, what, remote.WithContext(labtest.Context(t, time.Minute))))(t)
}

// pulls everything that a reference reaches, and compares each byte with its digest.
func pullWhole(ctx context.Context, registry, ref string) error {
	r, err := name.ParseReference(registry+"/"+ref, name.Insecure)
	if err != nil {
		return err
	}
	desc, err := remote.Get(r, remote.WithContext(ctx))
	if err != nil {
		return err
	}
	return pullDescriptor(ctx, r.Context(), desc)
}

func pullDescriptor(ctx context.Context, repo name.Repository, desc *remote.Descriptor) error {
	if desc.MediaType.IsIndex() {
		index, err := desc.ImageIndex()
		if err != nil {
			return err
		}
		manifest, err := index.IndexManifest()
		if err != nil {
			return err
		}
		for _, child := range manifest.Manifests {
			sub, err := remote.Get(repo.Digest(child.Digest.String()), remote.WithContext(ctx))
			if err != nil {
				return err
			}
			if err := pullDescriptor(ctx, repo, sub); err != nil {
				return err
			}
		}
		return nil
	}
	img, err := desc.Image()
	if err != nil {
		return err
	}
	manifest, err := img.Manifest()
	if err != nil {
		return err
	}
	for _, blob := range append([]v1.Descriptor{manifest.Config}, manifest.Layers...) {
		layer, err := remote.Layer(repo.Digest(blob.Digest.String()), remote.WithContext(ctx))
		if err != nil {
			return err
		}
		in, err := layer.Compressed() // which verifies the digest at its end
		if err != nil {
			return fmt.Errorf("%s: %w", blob.Digest, err)
		}
		_, err = io.Copy(io.Discard, in)
		if err := errors.Join(err, in.Close()); err != nil {
			return fmt.Errorf("%s: %w", blob.Digest, err)
		}
	}
	return nil
}

func noWait(p *janitorv1.Policy) *janitorv1.Policy {
	p.MaxBuildTime = durationpb.New(0)
	return p
}

// weekly is the default policy without the time that builds may want blobs for.
func weekly() *janitorv1.Policy {
	return noWait(&janitorv1.Policy{Rules: []*janitorv1.Rule{
		{Name: "cache", Match: &janitorv1.Match{Repositories: []string{"cache/**"}}, Keep: &janitorv1.Keep{Age: durationpb.New(7 * 24 * time.Hour), DropEmptyRepositories: true}},
		{Name: "untagged", Match: &janitorv1.Match{Tagging: janitorv1.Tagging_TAGGING_UNTAGGED}, Keep: &janitorv1.Keep{Age: durationpb.New(7 * 24 * time.Hour)}},
	}})
}

const day = 24 * time.Hour

// On the guide's layout: real buildkitd exports caches to cache/…; what was not used for
// seven days goes, blobs included; what was imported or pulled on day six stays; the next
// build works; and what went can be brought back.
func TestS5_SevenDays(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	ctx := labtest.Context(t, 4*time.Minute)
	cache := func(project, text string, args ...string) string {
		src := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\n" + text})
		ref := "type=registry,ref=" + s.Registry.Addr + "/cache/" + project + ":main"
		out := labtest.Must(lab.Exec(ctx, buildctl(t, s.Buildkitd.Addr, src, append([]string{"--export-cache", ref + ",mode=max", "--import-cache", ref}, args...)...)))(t)
		return out.Stderr + out.Stdout
	}
	texts := map[string]string{}
	for _, project := range []string{"old", "imported", "pulled", "leased"} {
		texts[project] = "RUN echo " + project + "; head -c 100000 /dev/urandom >/" + project + "\n"
		cache(project, texts[project])
	}
	putImage(t, s.Registry, "app:v1", labtest.Must(random.Image(10_000, 2))(t))
	state := t.TempDir()
	same := func(cfg *configv1.JanitorConfig) { cfg.StateDir = state }

	// Day six.
	six := keeper(t, s.lab, s.Registry, 6*day, same)
	labtest.Must(six.api.RecordUse(ctx, &janitorv1.RecordUseRequest{Uses: []*janitorv1.Use{
		{Reference: s.Registry.Addr + "/cache/imported:main", Kind: janitorv1.UseKind_USE_KIND_IMPORT},
		{Reference: s.Registry.Addr + "/cache/pulled:main", Kind: janitorv1.UseKind_USE_KIND_PULL, Time: timestamppb.New(time.Now().Add(20 * day))},
	}}))(t)
	if o := six.run(t, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}, Force: true}); len(o.removed) > 0 || o.finished.GetState() != janitorv1.RunState_RUN_STATE_SUCCEEDED {
		t.Errorf("on day six: %v", o.finished)
	}
	labtest.Must(0, six.Stop(ctx))(t)

	// Day eight.
	eight := keeper(t, s.lab, s.Registry, 8*day, same)
	lease := labtest.Must(eight.api.AcquireLease(ctx, &janitorv1.AcquireLeaseRequest{
		References: []string{s.Registry.Addr + "/cache/leased:main"}, Mode: janitorv1.LeaseMode_LEASE_MODE_IMPORT, Holder: "a build",
	}))(t).GetLease()
	before, bytesBefore := stored(t, s.Registry.Storage)
	dry := eight.run(t, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}})
	if _, bytes := stored(t, s.Registry.Storage); bytes != bytesBefore || !dry.finished.GetDryRun() || len(dry.removed) != 1 {
		t.Errorf("a dry run: %v", dry.finished)
	}
	plan, _ := eight.planned(t, &janitorv1.PlanRunRequest{Policy: weekly()})
	o := eight.run(t, &janitorv1.RunRequest{By: &janitorv1.RunRequest_PlanDigest{PlanDigest: plan.GetDigest()}, Force: true})
	after, bytesAfter := stored(t, s.Registry.Storage)
	if freed := bytesBefore - bytesAfter; o.finished.GetState() != janitorv1.RunState_RUN_STATE_SUCCEEDED || freed != plan.GetRemove().GetSizeBytes() ||
		o.finished.GetRemoved().GetSizeBytes() != freed || o.finished.GetRemoved().GetManifests()+o.finished.GetRemoved().GetBlobs() != before-after || freed < 100_000 {
		t.Errorf("planned %v, removed %v; %d blobs with %d bytes went: %v", plan.GetRemove(), o.finished.GetRemoved(), before-after, freed, o.finished)
	}
	if o.finished.GetBrokenManifests() != 0 || o.finished.GetVerifiedManifests() != plan.GetKeep().GetManifests() {
		t.Errorf("verified: %v", o.finished)
	}
	if got := strings.Join(o.phases, " "); got != "PREPARE PLAN MANIFESTS LIST MARK HIDE SETTLE QUARANTINE RECHECK VERIFY PURGE" {
		t.Errorf("phases: %s", got)
	}
	for project, there := range map[string]bool{"cache/old:main": false, "cache/imported:main": true, "cache/pulled:main": true, "cache/leased:main": true, "app:v1": true, "base/busybox:1": true} {
		if err := pullWhole(ctx, s.Registry.Addr, project); (err == nil) != there {
			t.Errorf("%s: %v", project, err)
		}
	}

	// It can be undone.
	restored := labtest.Must(eight.api.Restore(ctx, &janitorv1.RestoreRequest{What: &janitorv1.RestoreRequest_RunId{RunId: o.finished.GetId()}}))(t)
	if got := restored.GetReferences(); len(got) != 1 || got[0] != s.Registry.Addr+"/cache/old:main" {
		t.Errorf("restored: %v", restored)
	}
	labtest.Must(0, pullWhole(ctx, s.Registry.Addr, "cache/old:main"))(t)
	if _, bytes := stored(t, s.Registry.Storage); bytes != bytesBefore {
		t.Errorf("%d bytes are back of %d", bytes, bytesBefore)
	}
	if o := eight.run(t, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}, Force: true}); len(o.removed) > 0 {
		t.Errorf("what was restored went again: %v", o.removed)
	}
	labtest.Must(eight.api.ReleaseLease(ctx, &janitorv1.ReleaseLeaseRequest{LeaseId: lease.GetId()}))(t)
	if o := eight.run(t, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}, Force: true}); len(o.removed) > 0 {
		t.Errorf("its lease ended just now: %v", o.removed)
	}

	// The next builds work, from the cache that is there and without the one that is not.
	labtest.Must(lab.Exec(ctx, lab.Command{Path: labtest.Must(lab.Bin("buildctl"))(t), Args: []string{"--addr", s.Buildkitd.Addr, "prune", "--all"}}))(t)
	if out := cache("imported", texts["imported"]); !strings.Contains(out, "CACHED") {
		t.Errorf("the imported cache is not used:\n%s", out)
	}
	cache("old", texts["old"])
	labtest.Must(0, pullWhole(ctx, s.Registry.Addr, "cache/old:main"))(t)
}

// A kill -9 at each step of a run, then a start: the run goes on or is put right. No blob is
// lost and none is left in limbo: what was to go is in quarantine and can be restored whole,
// what was to stay can be pulled.
func TestS5_KilledAtEachStep(t *testing.T) {
	root := labtest.Must(lab.RepoRoot())(t)
	points := labtest.Must(find.Names(filepath.Join(root, "services", "janitor")))(t)
	if len(points) < 12 {
		t.Fatalf("only %d failpoints: %v", len(points), points)
	}
	for _, point := range points {
		t.Run(point, func(t *testing.T) { dieSweeping(t, point, false) })
	}
	// Where a move is a copy and a deletion, in the middle of those.
	for _, point := range []string{"janitor.begun", "janitor.unlinked", "janitor.hidden", "janitor.taken", "janitor.rechecked", "janitor.outofsight", "janitor.restoring"} {
		t.Run("s3/"+point, func(t *testing.T) {
			t.Parallel() // most of it is to wait until the one that was killed is known to be
			dieSweeping(t, point, true)
		})
	}
}

// A push whose link of a manifest was taken at the moment that it was written leaves a tag that
// leads to what is in quarantine: it comes back, after a kill -9 and without one, with all that
// it names.
func TestS5_TagOfWhatWasTakenComesBack(t *testing.T) {
	for _, killed := range []bool{true, false} {
		t.Run(fmt.Sprintf("killed=%t", killed), func(t *testing.T) {
			l := labtest.New(t)
			ctx := labtest.Context(t, 2*time.Minute)
			registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
			old := labtest.Must(random.Image(3_000, 2))(t)
			putImage(t, registry, "cache/a:main", old)
			putImage(t, registry, "app:v1", labtest.Must(random.Image(3_000, 2))(t))
			j := keeper(t, l, registry, 8*day, nil)
			req := &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}, Force: true}
			if killed {
				labtest.Must(0, j.Stop(ctx))(t)
				labtest.Must(0, j.StartFailing(ctx, "janitor.manifest"))(t)
				if _, err := j.tryRun(ctx, req); err == nil {
					t.Fatal("it ran to its end")
				}
				<-j.Done()
			} else if o := j.run(t, req); o.finished.GetRemoved().GetManifests() != 1 {
				t.Fatalf("%v", o.finished)
			}
			digest := labtest.Must(old.Digest())(t)
			tag := "docker/registry/v2/repositories/cache/a/_manifests/tags/kept"
			labtest.Write(t, registry.Storage, map[string]string{
				filepath.Join(tag, "index/sha256", digest.Hex, "link"): digest.String(), filepath.Join(tag, "current/link"): digest.String(),
			})
			pushed := time.Now().Add(8 * day) // by the janitor's clock
			labtest.Must(0, os.Chtimes(filepath.Join(registry.Storage, tag, "current/link"), pushed, pushed))(t)
			if killed {
				labtest.Must(0, j.Start(ctx))(t)
			}
			labtest.Eventually(t, 30*time.Second, "a run to the end", func() bool { // the one that is taken up may be under way
				o, err := j.tryRun(ctx, req)
				return err == nil && o.finished.GetState() == janitorv1.RunState_RUN_STATE_SUCCEEDED && o.finished.GetBrokenManifests() == 0
			})
			labtest.Must(0, pullWhole(ctx, registry.Addr, "cache/a:kept"))(t)
		})
	}
}

// In an object storage, what a push writes as it is taken is away for seconds and not for the
// whole run: tags are looked at while manifests go.
func TestS5_TagIsBackWhileTheRunGoesOn(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 3*time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{S3: labtest.Must(l.StartS3(ctx))(t)}))(t)
	putImage(t, registry, "app:v1", labtest.Must(random.Image(3_000, 2))(t))
	base := labtest.Must(random.Image(3_000, 1))(t)
	const images = 300
	for i := range images {
		putImage(t, registry, fmt.Sprintf("cache/a:%d", i), labtest.Must(mutate.Config(base, v1.Config{User: fmt.Sprint(i)}))(t))
	}
	j := keeper(t, l, registry, 8*day, nil)
	repository := filepath.Join(registry.Storage, "docker/registry/v2/repositories/cache/a/_manifests")
	before := labtest.Must(filepath.Glob(filepath.Join(repository, "revisions/sha256/*/link")))(t)
	if len(before) != images {
		t.Fatalf("%d manifests", len(before))
	}
	stream := labtest.Must(j.api.Run(ctx, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}, Force: true}))(t)
	var over atomic.Bool // the phase
	finished := make(chan *janitorv1.Run, 1)
	go func() {
		defer close(finished)
		for {
			res, err := stream.Recv()
			if err != nil {
				return
			}
			if res.GetProgress().GetPhase() > janitorv1.RunPhase_RUN_PHASE_MANIFESTS {
				over.Store(true)
			}
			if r := res.GetFinished(); r != nil {
				finished <- r
			}
		}
	}()
	hex := ""
	labtest.Eventually(t, time.Minute, "a manifest that went", func() bool {
		i := slices.IndexFunc(before, func(link string) bool { _, err := os.Stat(link); return os.IsNotExist(err) })
		if i >= 0 {
			hex = filepath.Base(filepath.Dir(before[i]))
		}
		return i >= 0
	})
	labtest.Write(t, repository, map[string]string{
		filepath.Join("tags/kept/index/sha256", hex, "link"): "sha256:" + hex, "tags/kept/current/link": "sha256:" + hex,
	})
	began := time.Now()
	labtest.Eventually(t, time.Minute, "the tag to be pulled", func() bool { return pullWhole(ctx, registry.Addr, "cache/a:kept") == nil })
	if over.Load() {
		t.Error("it came back when all manifests had gone")
	}
	t.Logf("it was back after %s", time.Since(began))
	if r := <-finished; r.GetState() != janitorv1.RunState_RUN_STATE_SUCCEEDED || r.GetBrokenManifests() != 0 || r.GetVerifiedManifests() != 2 {
		t.Errorf("%v", r)
	}
	labtest.Must(0, pullWhole(ctx, registry.Addr, "cache/a:kept"))(t)
}

func dieSweeping(t *testing.T, point string, inS3 bool) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	opts, patience := lab.RegistryOptions{}, 20*time.Second
	if inS3 {
		opts.S3, patience = labtest.Must(l.StartS3(ctx))(t), time.Minute
	}
	registry := labtest.Must(l.StartRegistry(ctx, opts))(t)
	shared := labtest.Must(random.Layer(5_000, "application/vnd.oci.image.layer.v1.tar+gzip"))(t)
	image := func() v1.Image {
		return labtest.Must(mutate.AppendLayers(labtest.Must(random.Image(3_000, 2))(t), shared))(t)
	}
	for _, ref := range []string{"app:v1", "app:v2", "cache/a:main", "cache/a:other", "cache/b:main"} {
		putImage(t, registry, ref, image())
	}
	blobs, bytes := stored(t, registry.Storage)
	j := keeper(t, l, registry, 8*day, nil)
	req := &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}, Force: true}
	first, at := req, point
	switch point {
	case "janitor.recovered": // as it puts right what another end has left
		at = "janitor.taken:2"
	case "janitor.manifest", "janitor.hidden", "janitor.taken": // in the middle of several
		at = point + ":2"
	case "janitor.outofsight": // there has to be something that is old
		old := weekly()
		old.Quarantine = durationpb.New(0)
		first = &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: old}, Force: true}
		bytes, blobs = -1, -1
	}
	labtest.Must(0, j.Stop(ctx))(t)
	labtest.Must(0, j.StartFailing(ctx, at))(t)
	if point == "janitor.restoring" {
		done := j.run(t, first)
		_, err := j.api.Restore(ctx, &janitorv1.RestoreRequest{What: &janitorv1.RestoreRequest_RunId{RunId: done.finished.GetId()}})
		if err == nil {
			t.Fatal("it was restored, and not killed")
		}
	} else if _, err := j.tryRun(ctx, first); err == nil {
		t.Fatal("it ran to its end")
	}
	select {
	case <-j.Done():
	case <-time.After(20 * time.Second):
		t.Fatalf("it did not come to %s:\n%s", point, j.Tail(20))
	}
	if point == "janitor.recovered" {
		_ = j.StartFailing(ctx, point) // it dies as it takes the run up
		select {
		case <-j.Done():
		case <-time.After(20 * time.Second):
			t.Fatal("it did not come to the second point")
		}
	}
	labtest.Must(0, j.Start(ctx))(t)
	labtest.Eventually(t, patience, "the end of all runs", func() bool {
		for _, r := range labtest.Must(j.api.ListRuns(ctx, &janitorv1.ListRunsRequest{}))(t).GetRuns() {
			if r.GetEndTime() == nil || r.GetState() == janitorv1.RunState_RUN_STATE_INTERRUPTED && point != "janitor.outofsight" && point != "janitor.purging" {
				return false
			}
		}
		return true
	})
	for _, ref := range []string{"app:v1", "app:v2"} {
		if err := pullWhole(ctx, registry.Addr, ref); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
	}
	labtest.Eventually(t, patience, "a run to the end", func() bool { // one may be under way
		o, err := j.tryRun(ctx, req)
		return err == nil && o.finished.GetState() == janitorv1.RunState_RUN_STATE_SUCCEEDED && o.finished.GetBrokenManifests() == 0
	})
	for _, ref := range []string{"cache/a:main", "cache/a:other", "cache/b:main"} {
		if err := pullWhole(ctx, registry.Addr, ref); err == nil && point != "janitor.restoring" {
			t.Errorf("%s is there", ref)
		}
	}
	plan, _ := j.planned(t, &janitorv1.PlanRunRequest{Policy: weekly()})
	if plan.GetRemove().GetManifests()+plan.GetRemove().GetBlobs() > 0 && point != "janitor.restoring" {
		t.Errorf("left over: %v", plan)
	}
	if links := labtest.Must(filepath.Glob(filepath.Join(registry.Storage, "docker/registry/v2/repositories/app/_layers/sha256/*/link")))(t); len(links) == 0 {
		t.Error("the links of what stays are gone")
	}
	if bytes < 0 {
		return
	}
	labtest.Must(j.api.Restore(ctx, &janitorv1.RestoreRequest{What: &janitorv1.RestoreRequest_Filter{Filter: `quarantine_time > "2020-01-01T00:00:00Z"`}}))(t)
	for _, ref := range []string{"app:v1", "app:v2", "cache/a:main", "cache/a:other", "cache/b:main"} {
		if err := pullWhole(ctx, registry.Addr, ref); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if n, size := stored(t, registry.Storage); n != blobs || size != bytes {
		t.Errorf("%d blobs of %d bytes are there, of %d of %d", n, size, blobs, bytes)
	}
}

// A build by Kiln leases the caches in the registry that it imports and exports while it goes
// on, and tells of their use when it ends; without a janitor it goes on all the same.
func TestS5_BuildsLeaseTheirCaches(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{Registries: []string{registry.Addr}}))(t)
	base := labtest.Must(image.PushBase(ctx, registry.Addr))(t)
	j := keeper(t, l, registry, 30*day, nil)
	builder := labtest.Must(l.StartBuilder(ctx, &configv1.BuilderConfig{
		Daemons: []*configv1.DaemonConfig{{Name: "a", Address: daemon.Addr}}, CacheRepository: registry.Addr + "/cache", Janitor: &configv1.JanitorClient{Address: j.Addr},
	}, lab.ServiceOptions{}))(t)
	conn := labtest.Must(lab.Dial(builder.Addr))(t)
	defer func() { _ = conn.Close() }()
	api := builderv1.NewBuilderServiceClient(conn)
	start := func(text string) error {
		spec := inline(map[string]string{"Dockerfile": "FROM " + base + "\n" + text})
		spec.Project, spec.Cache = "web", registryCache()
		stream, err := api.Build(ctx, &builderv1.BuildRequest{Spec: spec})
		for err == nil {
			_, err = stream.Recv()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	caches := func() (all []*janitorv1.Verdict) {
		_, verdicts := j.planned(t, &janitorv1.PlanRunRequest{Policy: weekly()})
		for _, v := range verdicts {
			if v.GetItem().GetRepository() == "cache/web" {
				all = append(all, v)
			}
		}
		return all
	}
	labtest.Must(0, start("RUN head -c 10000 /dev/urandom >/x\n"))(t)
	ended := make(chan error, 1)
	go func() { ended <- start("RUN sleep 4; head -c 10000 /dev/urandom >/x\n") }()
	labtest.Eventually(t, 20*time.Second, "the lease", func() bool {
		return slices.ContainsFunc(caches(), func(v *janitorv1.Verdict) bool { return word(v) == "leased" })
	})
	labtest.Must(0, <-ended)(t)
	// Its export counts as a use on day thirty, though the registry says that it was pushed long ago.
	all := caches()
	if !slices.ContainsFunc(all, func(v *janitorv1.Verdict) bool {
		return word(v) == "within_bounds" && v.GetAge().AsDuration() < time.Hour && slices.Contains(v.GetItem().GetTags(), "native")
	}) || slices.ContainsFunc(all, func(v *janitorv1.Verdict) bool { return word(v) == "leased" }) {
		t.Errorf("after the build: %v", all)
	}
	labtest.Must(0, j.Stop(ctx))(t)
	labtest.Must(0, start("RUN echo without a janitor\n"))(t)
	if got := metric(t, builder, "kiln_build_leases_missed_total"); got == "" || got == "0" {
		t.Errorf("%q builds without a lease in the metrics", got)
	}
}

// The older form of BuildKit's caches is an index that lists layers: a registry takes it that
// does not ask for what an index lists (validation.manifests.indexes.platforms: none). It is kept
// and removed as the other form is, layers included.
func TestS5_CacheInTheFormOfAnIndex(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{YAML: "validation:\n  manifests:\n    indexes:\n      platforms: none\n"}))(t)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{Registries: []string{registry.Addr}}))(t)
	base := labtest.Must(image.PushBase(ctx, registry.Addr))(t)
	dir := t.TempDir()
	labtest.Must(0, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM "+base+"\nRUN head -c 100000 /dev/urandom >/x\n"), 0o600))(t)
	ref := "type=registry,ref=" + registry.Addr + "/cache/web:main"
	build := func() string {
		labtest.Must(lab.Exec(ctx, lab.Command{Path: labtest.Must(lab.Bin("buildctl"))(t), Args: []string{"--addr", daemon.Addr, "prune", "--all"}}))(t)
		out := labtest.Must(lab.Exec(ctx, buildctl(t, daemon.Addr, dir, "--export-cache", ref+",mode=max,image-manifest=false", "--import-cache", ref)))(t)
		return out.Stderr + out.Stdout
	}
	build()
	six := keeper(t, l, registry, 6*day, nil)
	_, verdicts := six.planned(t, &janitorv1.PlanRunRequest{Policy: weekly()})
	if i := slices.IndexFunc(verdicts, func(v *janitorv1.Verdict) bool { return v.GetItem().GetRepository() == "cache/web" }); i < 0 || word(verdicts[i]) != "within_bounds" || verdicts[i].GetItem().GetManifestKind() != janitorv1.ManifestKind_MANIFEST_KIND_CACHE {
		t.Errorf("on day six: %v", verdicts)
	}
	if out := build(); !strings.Contains(out, "CACHED") {
		t.Errorf("its cache is not used:\n%s", out)
	}
	labtest.Must(0, six.Stop(ctx))(t)
	blobs, bytes := stored(t, registry.Storage)
	eight := keeper(t, l, registry, 8*day, nil)
	o := eight.run(t, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}, Force: true})
	after, bytesAfter := stored(t, registry.Storage)
	if o.finished.GetState() != janitorv1.RunState_RUN_STATE_SUCCEEDED || o.finished.GetRemoved().GetSizeBytes() != bytes-bytesAfter || bytes-bytesAfter < 100_000 || blobs-after < 3 {
		t.Errorf("%d blobs of %d bytes went: %v", blobs-after, bytes-bytesAfter, o.finished)
	}
	labtest.Must(eight.api.Restore(ctx, &janitorv1.RestoreRequest{What: &janitorv1.RestoreRequest_RunId{RunId: o.finished.GetId()}}))(t)
	if out := build(); !strings.Contains(out, "CACHED") {
		t.Errorf("what was restored is not used:\n%s", out)
	}
}
