package content

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func digest(c string) Digest { return Digest("sha256:" + strings.Repeat(c, 64)) }

func ref(mediaType, c string, size int) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mediaType, digest(c), size)
}

func TestParse(t *testing.T) {
	layer := "application/vnd.oci.image.layer.v1.tar+gzip"
	tests := []struct {
		name string
		raw  string
		want Manifest
	}{
		{
			name: "image",
			raw: `{"mediaType":"` + string(OCIManifest) + `","config":` + ref("application/vnd.oci.image.config.v1+json", "c", 5) +
				`,"layers":[` + ref(layer, "1", 10) + `,` + ref(layer, "2", 20) + `]}`,
			want: Manifest{Kind: OCIManifest, Of: Image, Configured: true, Blobs: []Blob{NewBlob(digest("c"), 5), NewBlob(digest("1"), 10), NewBlob(digest("2"), 20)}},
		},
		{
			name: "image without layers and without a media type",
			raw:  `{"config":` + ref("x", "c", 5) + `,"layers":[]}`,
			want: Manifest{Kind: "served", Of: Artifact, Configured: true, Blobs: []Blob{NewBlob(digest("c"), 5)}},
		},
		{
			name: "index",
			raw: `{"mediaType":"` + string(OCIIndex) + `","manifests":[` + ref(string(OCIManifest), "a", 7) + `,` +
				ref(string(DockerManifest), "b", 8) + `,` + ref("", "d", 9) + `]}`,
			want: Manifest{Kind: OCIIndex, Of: Index, Children: []Digest{digest("a"), digest("b"), digest("d")}},
		},
		{
			name: "BuildKit's cache in the form of an index",
			raw: `{"mediaType":"` + string(OCIIndex) + `","manifests":[` + ref(layer, "1", 10) + `,` +
				ref("application/vnd.buildkit.cacheconfig.v0", "c", 3) + `]}`,
			want: Manifest{Kind: OCIIndex, Of: Cache, Blobs: []Blob{NewBlob(digest("1"), 10), NewBlob(digest("c"), 3)}},
		},
		{
			name: "BuildKit's cache in the form of an image",
			raw: `{"mediaType":"` + string(OCIManifest) + `","config":` + ref("application/vnd.buildkit.cacheconfig.v0", "c", 3) +
				`,"layers":[` + ref(layer, "1", 10) + `]}`,
			want: Manifest{Kind: OCIManifest, Of: Cache, Configured: true, Blobs: []Blob{NewBlob(digest("c"), 3), NewBlob(digest("1"), 10)}},
		},
		{
			name: "a signature that refers to a subject",
			raw: `{"mediaType":"` + string(OCIManifest) + `","artifactType":"application/x","config":` + ref("application/vnd.oci.empty.v1+json", "c", 2) +
				`,"layers":[],"subject":` + ref(string(OCIManifest), "5", 9) + `}`,
			want: Manifest{Kind: OCIManifest, Of: Referrer, Configured: true, Subject: digest("5"), Blobs: []Blob{NewBlob(digest("c"), 2)}},
		},
		{
			name: "a foreign layer is not in the registry",
			raw: `{"mediaType":"` + string(DockerManifest) + `","layers":[{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":"` +
				string(digest("f")) + `","size":9,"urls":["https://example.org/f"]}]}`,
			want: Manifest{Kind: DockerManifest, Of: Artifact, Foreign: []Digest{digest("f")}},
		},
		{
			name: "an index whose list is null",
			raw:  `{"schemaVersion":2,"mediaType":"` + string(OCIIndex) + `","manifests":null}`,
			want: Manifest{Kind: OCIIndex, Of: Index},
		},
		{
			name: "an index without a list or a type",
			raw:  `{"schemaVersion":2}`,
			want: Manifest{Kind: "served", Of: Artifact},
		},
		{
			name: "an image whose layers are null, and whose subject is empty",
			raw: `{"schemaVersion":2,"mediaType":"` + string(OCIManifest) + `","config":` + ref(string(imageConfigs[0]), "c", 5) +
				`,"layers":null,"subject":{}}`,
			want: Manifest{Kind: OCIManifest, Of: Image, Configured: true, Blobs: []Blob{NewBlob(digest("c"), 5)}},
		},
		{
			name: "a subject that is no digest",
			raw:  `{"layers":[],"subject":{"digest":"x"}}`,
			want: Manifest{Kind: "served", Of: Artifact},
		},
		{
			name: "a negative size is none",
			raw:  `{"layers":[` + ref("x", "1", -1) + `]}`,
			want: Manifest{Kind: "served", Of: Artifact, Blobs: []Blob{NewBlob(digest("1"), 0)}},
		},
		{
			name: "references without a digest name nothing",
			raw:  `{"config":{},"layers":[{}],"manifests":[{},` + ref("", "2", 3) + `]}`,
			want: Manifest{Kind: "served", Of: Index, Children: []Digest{digest("2")}},
		},
		{
			name: "a configuration that lives at a URL, too",
			raw:  `{"config":{"digest":"` + string(digest("c")) + `","size":5,"urls":["https://example.org/c"]},"layers":[]}`,
			want: Manifest{Kind: "served", Of: Image, Configured: true, Blobs: []Blob{NewBlob(digest("c"), 5)}},
		},
		{
			name: "layers of another algorithm, with their data",
			raw:  `{"layers":[{"digest":"sha512:` + strings.Repeat("ab", 64) + `","size":4,"data":"aGFsbG8="}]}`,
			want: Manifest{Kind: "served", Of: Artifact, Blobs: []Blob{NewBlob(Digest("sha512:"+strings.Repeat("ab", 64)), 4)}},
		},
		{
			name: "Docker's schema 1",
			raw: `{"schemaVersion":1,"name":"a","tag":"b","fsLayers":[{"blobSum":"` + string(digest("1")) + `"},{"blobSum":"` +
				string(digest("2")) + `"}],"history":[{"v1Compatibility":"{}"}],"signatures":[{}]}`,
			want: Manifest{Kind: "served", Of: Image, Blobs: []Blob{NewBlob(digest("1"), 0), NewBlob(digest("2"), 0)}},
		},
		{
			name: "artifact",
			raw:  `{"mediaType":"` + string(OCIArtifact) + `","blobs":[` + ref("text/plain", "1", 4) + `]}`,
			want: Manifest{Kind: OCIArtifact, Of: Artifact, Blobs: []Blob{NewBlob(digest("1"), 4)}},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := Parse(digest("0"), "served", []byte(test.raw))
			if err != nil {
				t.Fatal(err)
			}
			test.want.Digest, test.want.Bytes = digest("0"), int64(len(test.raw))
			if diff := cmp.Diff(test.want, got, cmpopts.EquateComparable(Blob{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	tests := map[string]string{
		"no bytes":          ``,
		"no JSON":           `hello`,
		"truncated":         `{"layers":[`,
		"no manifest":       `{"hello":"world"}`,
		"a list":            `[]`,
		"a bad digest":      `{"layers":[{"digest":"../../etc/passwd","size":1}]}`,
		"an unknown type":   `{"mediaType":"application/x","layers":[]}`,
		"a digest is short": `{"layers":[{"digest":"sha256:abc","size":1}]}`,
	}
	for name, raw := range tests {
		if m, err := Parse(digest("0"), OCIManifest, []byte(raw)); err == nil {
			t.Errorf("%s: %+v", name, m)
		}
	}
}

// What a manifest leaves out is not what one before it said: documents are used again.
func TestParseKeepsNothing(t *testing.T) {
	full := `{"mediaType":"` + string(OCIIndex) + `","schemaVersion":2,"artifactType":"a","config":` + ref("c", "c", 5) + `,"subject":` + ref("s", "5", 6) +
		`,"layers":[{"digest":"` + string(digest("1")) + `","size":10,"urls":["https://example.org/1"]},` + ref("x", "2", 20) + `],"blobs":[` + ref("x", "3", 30) +
		`],"manifests":[` + ref(string(OCIIndex), "4", 40) + `]}`
	for range 100 { // a pool may forget
		if _, err := Parse(digest("0"), "served", []byte(full)); err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(digest("0"), "served", []byte(full[:len(full)-1])); err == nil {
			t.Fatal("a truncated one was read")
		}
		if m, err := Parse(digest("0"), "served", []byte(`{"layers":[{}]}`)); err != nil || len(m.Blobs)+len(m.Foreign) > 0 {
			t.Fatalf("a layer without a digest: %+v, %v", m, err)
		}
		if m, err := Parse(digest("0"), "served", []byte(`{"layers":null,"blobs":null}`)); err == nil {
			t.Fatalf("no lists: %+v", m)
		}
		raw := `{"layers":[{"digest":"` + string(digest("6")) + `"}]}`
		got, err := Parse(digest("0"), "served", []byte(raw))
		want := Manifest{Digest: digest("0"), Bytes: int64(len(raw)), Kind: "served", Of: Artifact, Blobs: []Blob{NewBlob(digest("6"), 0)}}
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(Blob{})); err != nil || diff != "" {
			t.Fatalf("%v %s", err, diff)
		}
	}
}

// Digests are read as encoding/json reads strings, which is how registries read them.
func TestDigestsAreReadAsStrings(t *testing.T) {
	for _, text := range []string{
		`"` + string(digest("a")) + `"`, `"sha256:` + strings.Repeat("A", 64) + `"`, `"sha256:\u0061` + strings.Repeat("a", 63) + `"`,
		`"` + string(digest("0")) + `"`, `"sha256:` + strings.Repeat("a", 63) + `"`, `"sha512:` + strings.Repeat("b", 128) + `"`, `""`, `null`, `1`, `{}`, `["x"]`, `true`,
	} {
		var want struct{ Digest Digest }
		wrong := json.Unmarshal([]byte(`{"digest":`+text+`}`), &want)
		m, err := Parse(digest("0"), "", []byte(`{"layers":[{"digest":`+text+`,"size":1}]}`))
		switch {
		case wrong == nil && want.Digest == "": // it names nothing
			if err != nil || len(m.Blobs) > 0 {
				t.Errorf("%s: %+v, %v", text, m.Blobs, err)
			}
		case (err == nil) != (wrong == nil && want.Digest.Valid()):
			t.Errorf("%s: %v, and encoding/json: %q, %v", text, err, want.Digest, wrong)
		case err == nil && (len(m.Blobs) != 1 || m.Blobs[0] != NewBlob(want.Digest, 1)):
			t.Errorf("%s: %+v", text, m.Blobs)
		}
	}
}

// No input makes the parser panic, or gives a digest that is none.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"layers":[` + ref("x", "1", 1) + `]}`))
	f.Add([]byte(`{"manifests":[{}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := Parse(digest("0"), OCIManifest, raw)
		if err != nil {
			return
		}
		for _, b := range m.Blobs {
			if !b.Digest().Valid() || b.Bytes < 0 {
				t.Errorf("blob %+v", b)
			}
		}
		for _, c := range m.Children {
			if !c.Valid() {
				t.Errorf("child %q", c)
			}
		}
	})
}
