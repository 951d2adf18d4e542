package e2e_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
)

// sums are digests of a text.
func sums(text string) (bySHA256, bySHA512 string) {
	short, long := sha256.Sum256([]byte(text)), sha512.Sum512([]byte(text))
	return "sha256:" + hex.EncodeToString(short[:]), "sha512:" + hex.EncodeToString(long[:])
}

// ask sends a request to a registry, and returns its status and body.
func ask(ctx context.Context, t *testing.T, method, url, contentType, body string) (int, string, http.Header) {
	t.Helper()
	req := labtest.Must(http.NewRequestWithContext(ctx, method, url, bytes.NewReader([]byte(body))))(t)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	req.Header.Set("Accept", ociManifest+", "+ociIndex)
	resp := labtest.Must(http.DefaultClient.Do(req))(t)
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode, string(labtest.Must(io.ReadAll(resp.Body))(t)), resp.Header
}

const (
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
	ociIndex    = "application/vnd.oci.image.index.v1+json"
)

// upload uploads a blob by a digest of any algorithm.
func upload(ctx context.Context, t *testing.T, registry *lab.Registry, repository, digest, text string) {
	t.Helper()
	base := "http://" + registry.Addr
	status, _, header := ask(ctx, t, http.MethodPost, base+"/v2/"+repository+"/blobs/uploads/", "", "")
	if status != http.StatusAccepted {
		t.Fatalf("begin of an upload: %d", status)
	}
	status, body, _ := ask(ctx, t, http.MethodPut, header.Get("Location")+"&digest="+digest, "application/octet-stream", text)
	if status != http.StatusCreated {
		t.Fatalf("upload of %s: %d %s", digest, status, body)
	}
}

// A registry takes references by digests of sha512, with their data or without, and odd documents.
// None of what they name goes, and what nothing names does.
func TestJanitor_KeepsWhatEachFormOfReferenceNames(t *testing.T) {
	for _, inS3 := range []bool{false, true} {
		t.Run(fmt.Sprintf("s3=%t", inS3), func(t *testing.T) { keepsEachForm(t, inS3) })
	}
}

func keepsEachForm(t *testing.T, inS3 bool) {
	t.Helper()
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	options := lab.RegistryOptions{YAML: "validation:\n  manifests:\n    urls:\n      allow: ['^https://']\n"}
	if inS3 {
		options.S3 = labtest.Must(l.StartS3(ctx))(t)
	}
	registry := labtest.Must(l.StartRegistry(ctx, options))(t)
	put := func(repository, tag, mediaType, text string) string {
		t.Helper()
		url := "http://" + registry.Addr + "/v2/" + repository + "/manifests/" + tag
		if status, body, _ := ask(ctx, t, http.MethodPut, url, mediaType, text); status != http.StatusCreated {
			t.Fatalf("%s: %d %s", text, status, body)
		}
		digest, _ := sums(text)
		return digest
	}
	describe := func(digest, more string) string {
		return fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%s}`, digest, "5"+more)
	}
	layer256, layer512 := sums("a layer by its sha512")
	upload(ctx, t, registry, "app", layer512, "a layer by its sha512")
	_, withData := sums("hello")
	upload(ctx, t, registry, "app", withData, "hello")
	config256, config512 := sums(`{"a":1}`)
	upload(ctx, t, registry, "app", config512, `{"a":1}`)
	begin := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":7}`, ociManifest, config512)
	image := put("app", "image", ociManifest, begin+`,"layers":[`+describe(layer512, "")+`,`+describe(withData, `,"data":"aGVsbG8="`)+`,`+
		describe(layer256, `,"urls":["https://example.org/layer"]`)+`]}`)
	put("app", "null", ociManifest, begin+`,"layers":null,"subject":{}}`)
	put("app", "negative", ociManifest, begin+`,"layers":[{"mediaType":"application/x","digest":"`+layer512+`","size":-1}]}`)
	put("app", "odd-subject", ociManifest, begin+`,"layers":[],"subject":{"digest":"x"}}`)
	put("app", "empty-index", ociIndex, `{"schemaVersion":2,"mediaType":"`+ociIndex+`","manifests":null}`)
	nested := put("app", "nested", ociIndex, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":"application/x-odd","digest":%q,"size":9}]}`, ociIndex, image))
	put("app", "outer", ociIndex, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":9}]}`, ociIndex, ociIndex, nested))
	orphan256, orphan512 := sums("nothing names it")
	upload(ctx, t, registry, "app", orphan512, "nothing names it")
	for _, tag := range []string{"image", "nested"} { // what outer lists has no tag of its own
		ask(ctx, t, http.MethodDelete, "http://"+registry.Addr+"/v2/app/manifests/"+tag, "", "")
	}

	j := keeper(t, l, registry, 8*day, nil)
	o := j.run(t, &janitorv1.RunRequest{Force: true, By: &janitorv1.RunRequest_Policy{Policy: weekly()}})
	if o.finished.GetState() != janitorv1.RunState_RUN_STATE_SUCCEEDED || len(o.defects) > 0 || len(o.plan.GetWarnings()) > 1 {
		t.Errorf("%v, warnings %q, defects %v", o.finished, o.plan.GetWarnings(), o.defects)
	}
	for digest, want := range map[string]int{
		layer512: 200, layer256: 200, withData: 200, config512: 200, config256: 200, orphan512: 404, orphan256: 404,
	} {
		if status, _, _ := ask(ctx, t, http.MethodGet, "http://"+registry.Addr+"/v2/app/blobs/"+digest, "", ""); status != want {
			t.Errorf("blob %s: %d, want %d", digest, status, want)
		}
	}
	for _, reference := range []string{"outer", "null", "negative", "odd-subject", "empty-index", nested, image} {
		if status, body, _ := ask(ctx, t, http.MethodGet, "http://"+registry.Addr+"/v2/app/manifests/"+reference, "", ""); status != http.StatusOK {
			t.Errorf("manifest %s: %d %s", reference, status, body)
		}
	}
}
