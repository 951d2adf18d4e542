package e2e_test

import (
	"net/http"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
)

// A client that has a manifest pulls its blobs alone, and one that pushes asks whether they are
// there: both are uses, of images and of blobs that nothing names yet.
func TestJanitor_PullsOfBlobsProlongLife(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	state := t.TempDir()
	j, registry, secret := listens(t, l, 0, state)
	lazy := small(t)
	putImage(t, registry, "cache/lazy:main", lazy)
	putImage(t, registry, "cache/not:main", small(t))
	asked, _ := sums("a blob that a push asks for")
	not, _ := sums("a blob that nobody asks for")
	upload(ctx, t, registry, "app", asked, "a blob that a push asks for")
	upload(ctx, t, registry, "app", not, "a blob that nobody asks for")
	url := func(repository, digest string) string {
		return "http://" + registry.Addr + "/v2/" + repository + "/blobs/" + digest
	}
	labtest.Must(0, j.Stop(ctx))(t)

	j, registry = again(t, l, j, registry, state, 6*day, secret)
	layer := labtest.Must(labtest.Must(lazy.Layers())(t)[0].Digest())(t).String()
	if status, _, _ := ask(ctx, t, http.MethodGet, url("cache/lazy", layer), "", ""); status != http.StatusOK {
		t.Fatalf("the layer: %d", status)
	}
	if status, _, _ := ask(ctx, t, http.MethodHead, url("app", asked), "", ""); status != http.StatusOK {
		t.Fatalf("the blob: %d", status)
	}
	policy := weekly()
	policy.BlobGrace = durationpb.New(7 * day)
	labtest.Eventually(t, 10*time.Second, "the notification", func() bool {
		_, all := j.planned(t, &janitorv1.PlanRunRequest{Policy: policy})
		for _, v := range all {
			if v.GetItem().GetRepository() == "cache/lazy" && v.GetAge().AsDuration() < day {
				return true
			}
		}
		return false
	})
	labtest.Must(0, j.Stop(ctx))(t)

	j, registry = again(t, l, j, registry, state, 8*day, secret)
	o := j.run(t, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: policy}, Force: true})
	if err := pullWhole(ctx, registry.Addr, "cache/lazy:main"); err != nil {
		t.Errorf("the image whose layer was pulled: %v, %v", err, o.finished)
	}
	if err := pullWhole(ctx, registry.Addr, "cache/not:main"); err == nil {
		t.Error("the image that nobody pulled is there")
	}
	for digest, want := range map[string]int{asked: http.StatusOK, not: http.StatusNotFound} {
		if status, _, _ := ask(ctx, t, http.MethodGet, url("app", digest), "", ""); status != want {
			t.Errorf("blob %s: %d, want %d", digest, status, want)
		}
	}
}
