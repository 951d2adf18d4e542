package e2e_test

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
)

// planned is a plan with all its verdicts.
func (j janitor) planned(t *testing.T, req *janitorv1.PlanRunRequest) (*janitorv1.Plan, []*janitorv1.Verdict) {
	t.Helper()
	req.WithKept, req.PageSize = true, 3
	var all []*janitorv1.Verdict
	for {
		res := labtest.Must(j.api.PlanRun(labtest.Context(t, time.Minute), req))(t)
		all = append(all, res.GetVerdicts()...)
		if res.GetNextPageToken() == "" {
			return res.GetPlan(), all
		}
		req = &janitorv1.PlanRunRequest{PageToken: res.GetNextPageToken()}
	}
}

func goesAway(v *janitorv1.Verdict) bool {
	return v.GetAction() == janitorv1.VerdictAction_VERDICT_ACTION_REMOVE
}

// BuildKit exports caches to the registry, images are pushed, moved and abandoned; eight
// days later the plan names what goes and why. The bytes that it says are those that are
// free once its manifests are deleted and the registry's own garbage collection has run.
func TestS5_PlanSaysWhatIsFreed(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	ctx := labtest.Context(t, 3*time.Minute)
	cache := func(text, ref, options string) {
		src := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\n" + text})
		labtest.Must(lab.Exec(ctx, buildctl(t, s.Buildkitd.Addr, src, "--export-cache", "type=registry,mode=max,ref="+s.Registry.Addr+ref+options)))(t)
	}
	cache("RUN head -c 100000 /dev/urandom >/a\n", "/cache/web:main", "")
	cache("RUN head -c 50000 /dev/urandom >/b\n", "/cache/web:main", "") // the first has no tag any more
	cache("RUN head -c 70000 /dev/urandom >/c\n", "/cache/deep/app:main", ",compression=zstd")
	push := func(ref string, img remote.Taggable) {
		t.Helper()
		r := labtest.Must(name.ParseReference(s.Registry.Addr+ref, name.Insecure))(t)
		labtest.Must(0, remote.Push(r, img, remote.WithContext(ctx)))(t)
	}
	images := make([]v1.Image, 4)
	for i := range images {
		images[i] = labtest.Must(random.Image(int64(10_000*(i+1)), 2))(t)
	}
	push("/app:1", images[0])
	push("/app:1", images[1])
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: images[1]}, mutate.IndexAddendum{Add: images[2]})
	push("/app:multi", index)
	orphan := labtest.Must(random.Layer(33_333, "application/vnd.oci.image.layer.v1.tar"))(t)
	repository := labtest.Must(name.NewRepository(s.Registry.Addr+"/only/layers", name.Insecure))(t)
	labtest.Must(0, remote.WriteLayer(repository, orphan, remote.WithContext(ctx)))(t)

	startAt := func(moved time.Duration) janitor {
		service := labtest.Must(s.lab.StartJanitor(ctx, &configv1.JanitorConfig{
			Registry: &configv1.RegistryConfig{Address: s.Registry.Addr, PlainHttp: true, StorageRoot: s.Registry.Storage}, CheckInterval: durationpb.New(time.Hour),
		}, lab.ServiceOptions{Clock: moved, Unhealthy: true}))(t)
		conn := labtest.Must(lab.Dial(service.Addr))(t)
		s.lab.OnClose("connection", func(context.Context) error { return conn.Close() })
		return janitor{Service: service, api: janitorv1.NewJanitorServiceClient(conn)}
	}
	today := startAt(0)
	if plan, all := today.planned(t, &janitorv1.PlanRunRequest{}); plan.GetRemove().GetManifests() != 0 || plan.GetRemove().GetSizeBytes() != 0 || slices.ContainsFunc(all, goesAway) {
		t.Errorf("today: %v", plan)
	}
	// What will go by then is the same as what goes then.
	foreseen, _ := today.planned(t, &janitorv1.PlanRunRequest{At: timestamppb.New(time.Now().Add(8 * 24 * time.Hour))})
	later := startAt(8 * 24 * time.Hour)
	plan, all := later.planned(t, &janitorv1.PlanRunRequest{})
	if a, b := foreseen.GetRemove(), plan.GetRemove(); a.GetManifests() != b.GetManifests() || a.GetSizeBytes() != b.GetSizeBytes() || foreseen.GetExpireTime() != nil {
		t.Errorf("foreseen %v, then %v", foreseen, plan)
	}

	said := map[string]int{}
	for _, v := range all {
		if v.GetExplanation() == "" {
			t.Errorf("%v", v)
		}
		item := v.GetItem()
		said[fmt.Sprintf("%s %s %v %s", item.GetRepository(), strings.ToLower(strings.TrimPrefix(item.GetManifestKind().String(), "MANIFEST_KIND_")), item.GetTags(), word(v))]++
	}
	want := map[string]int{
		"cache/web cache [main] age": 1, "cache/web cache [] age": 1, "cache/deep/app cache [main] age": 1,
		"app image [1] no_rule": 1, "app image [] age": 1, "app image [] parent": 1, "app index [multi] no_rule": 1, "base/busybox image [1] no_rule": 1,
		" unspecified [] unreached": 1,
	}
	for key, n := range want {
		if said[key] != n {
			t.Errorf("%d of %q, want %d", said[key], key, n)
		}
		delete(said, key)
	}
	if len(said) > 0 {
		t.Errorf("not expected: %v", said)
	}

	before, bytesBefore := stored(t, s.Registry.Storage)
	for _, v := range all {
		if item := v.GetItem(); goesAway(v) && item.GetRepository() != "" {
			ref := labtest.Must(name.NewDigest(s.Registry.Addr+"/"+item.GetRepository()+"@"+item.GetDigest(), name.Insecure))(t)
			labtest.Must(0, remote.Delete(ref, remote.WithContext(ctx)))(t)
		}
	}
	labtest.Must(0, s.Registry.CollectGarbage(ctx))(t)
	after, bytesAfter := stored(t, s.Registry.Storage)
	if freed := bytesBefore - bytesAfter; plan.GetRemove().GetSizeBytes() != freed || plan.GetRemove().GetManifests()+plan.GetRemove().GetBlobs() != before-after {
		t.Errorf("the plan says %v; %d blobs with %d bytes went", plan.GetRemove(), before-after, freed)
	}
	if _, bytes := stored(t, s.Registry.Storage); plan.GetKeep().GetSizeBytes() != bytes {
		t.Errorf("the plan keeps %v, and %d bytes are left", plan.GetKeep(), bytes)
	}

	// Bad input.
	_, err := later.api.PlanRun(ctx, &janitorv1.PlanRunRequest{Policy: &janitorv1.Policy{Rules: []*janitorv1.Rule{{Name: "a"}, {Name: "a"}}}})
	refused(t, err, codes.InvalidArgument, "INVALID_FIELD", "rules[1].name")
	_, err = later.api.PlanRun(ctx, &janitorv1.PlanRunRequest{PageToken: "x"})
	refused(t, err, codes.InvalidArgument, "INVALID_FIELD", "page_token")

	// As an operator sees it.
	for command, want := range map[string]string{
		"plan --repository app --kept": `(?s)no rule matches it.*goes: 0 manifests`,
		"plan --policy " + policyFile(t, "rules:\n- {name: all, keep: {age: 1h}}\n"): `(?m)^remove +app +image .*\s+all `,
		"usage":               `(?m)^app +2 .*\n(.*\n)*.*on the disk `,
		"usage --rules":       `(?m)^rule cache would free \d+ manifests`,
		"check --format json": `"reachable"`,
	} {
		out := labtest.Must(lab.Exec(ctx, lab.Command{
			Path: labtest.Must(lab.Bin("kiln"))(t), Args: append([]string{"janitor"}, strings.Fields(command)...), Env: []string{"KILN_JANITOR=" + later.Addr},
		}))(t)
		if !regexp.MustCompile(want).MatchString(out.Stdout) || strings.Contains(command, "app") && strings.Contains(out.Stdout, "cache/web") {
			t.Errorf("kiln janitor %s:\n%s", command, out.Stdout)
		}
	}
}

// word is the reason of a verdict, as people write it.
func word(v *janitorv1.Verdict) string {
	return strings.ToLower(strings.TrimPrefix(v.GetReason().String(), "VERDICT_REASON_"))
}
