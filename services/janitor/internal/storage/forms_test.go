package storage

import (
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
)

// Each kind of storage, with references by digests of other algorithms than sha256.
func TestStorages_OtherAlgorithms(t *testing.T) {
	s3 := startS3(t)
	for kind, open := range map[string]func(t *testing.T) *Storage{
		"disk": func(t *testing.T) *Storage { return New(t.TempDir()) },
		"s3": func(t *testing.T) *Storage {
			t.Helper()
			return NewObjects(s3(t), "s3:registry")
		},
	} {
		for name, conforms := range map[string]func(f filled){
			"what they name is no orphan":                 otherAlgorithmsName,
			"orphans go with all their links":             orphansGoWithAliases,
			"what a push names by them comes back":        aliasesAreWanted,
			"a link that is in quarantine still says":     hiddenAliasesResolve,
			"what nothing resolves is said":               unresolvedIsSaid,
			"links that no manifest needs are told apart": unnamedLinksAreFound,
			"removed images say what they named":          removedAliasesWait,
		} {
			t.Run(kind+"/"+name, func(t *testing.T) {
				f := filled{t, open(t)}
				t.Parallel()
				conforms(f)
			})
		}
	}
}

func sum512(text string) content.Digest {
	sum := sha512.Sum512([]byte(text))
	return content.Digest("sha512:" + hex.EncodeToString(sum[:]))
}

// layer512 uploads a layer by its digest of sha512, as the registry stores it.
func (f filled) layer512(repository, text string) (stored, named content.Digest) {
	f.t.Helper()
	stored, named = f.layer(repository, text), sum512(text)
	f.write(f.link(repository, layersDir, named), string(stored))
	return stored, named
}

// manifest is one whose layers have these digests.
func (f filled) manifest(repository string, layers ...content.Digest) content.Digest {
	f.t.Helper()
	text := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[`
	for i, d := range layers {
		if i > 0 {
			text += ","
		}
		text += fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":5}`, d)
	}
	d := f.blob(text + `]}`)
	f.revision(repository, d)
	return d
}

func otherAlgorithmsName(f filled) {
	t := f.t
	stored, named := f.layer512("r", "layer")
	image := f.manifest("r", named)
	for range 2 { // and as it is remembered
		all := f.look()
		if len(all.Orphans) > 0 || len(all.Repositories[0].Manifests) != 1 || len(all.Repositories[0].Unnamed) > 0 {
			t.Fatalf("%+v", all)
		}
		if lacks, err := f.Lacks(t.Context(), all); err != nil || len(lacks) > 0 {
			t.Fatalf("lacks %+v, %v", lacks, err)
		}
	}
	whole, err := f.ReadBlob(t.Context(), "r", named, func(int) error { return nil })
	if f.ok(err); !whole {
		t.Error("its bytes do not have its digest")
	}
	u, err := f.Usage(t.Context(), func(d content.Digest) bool { return d == named || d == image })
	if f.ok(err); u.UntaggedBytes != 0 {
		t.Errorf("usage: %+v", u)
	}
	f.write(f.data(stored), "other")
	if whole, err = f.ReadBlob(t.Context(), "r", named, func(int) error { return nil }); err != nil || whole {
		t.Errorf("other bytes: whole %t, %v", whole, err)
	}
	f.ok(f.files.remove(t.Context(), f.data(stored)))
	lacks, err := f.Lacks(t.Context(), f.look())
	if f.ok(err); len(lacks) != 1 || lacks[0].Digest != named || lacks[0].Manifest != image {
		t.Errorf("without its bytes: %+v", lacks)
	}
}

func orphansGoWithAliases(f filled) {
	t := f.t
	stored, named := f.layer512("a/b", "layer")
	f.write(f.link("c", layersDir, stored), string(stored))
	orphans := f.look().Orphans
	if len(orphans) != 1 || !slices.Equal(orphans[0].Links(), []string{"a/b", "c", "a/b@" + string(named)}) ||
		!slices.Equal(orphans[0].In(), []string{"a/b", "c"}) {
		t.Fatalf("%+v", orphans)
	}
	f.tick()
	q, o := f.begin("run"), orphans[0]
	hidden, err := q.Hide(o)
	if f.ok(err); !hidden || f.has(f.link("a/b", layersDir, named)) || f.has(f.link("a/b", layersDir, stored)) {
		t.Fatal("a link is not hidden")
	}
	taken, err := q.Blob(o)
	if f.ok(err); !taken {
		t.Fatal("it was not taken")
	}
	e := quarantine.Entry{Run: "run", Kind: "blob", Digest: string(stored), Linked: o.Links()}
	_, missing, err := f.Restore(e, time.Now())
	if f.ok(err); missing || !f.has(f.link("a/b", layersDir, named), f.link("a/b", layersDir, stored), f.data(stored)) {
		t.Error("it did not come back")
	}
	f.write(f.link("c", layersDir, named), string(stored)) // a mount, as the run goes on
	f.tick()
	again := f.begin("again")
	if hidden, err = again.Hide(o); err != nil || hidden && !f.has(f.link("c", layersDir, named)) {
		t.Errorf("hidden %t, %v", hidden, err)
	}
}

func aliasesAreWanted(f filled) {
	t := f.t
	stored, named := f.layer512("r", "layer")
	marked := f.look()
	f.tick()
	q := f.begin("run")
	_, err := q.Hide(marked.Orphans[0])
	f.ok(err)
	_, err = q.Blob(marked.Orphans[0])
	f.ok(err)
	gone := func(d content.Digest) bool { return d == stored }
	lacks, err := f.Wanted(t.Context(), marked, gone)
	if f.ok(err); len(lacks) > 0 {
		t.Fatalf("before the push: %+v", lacks)
	}
	f.write(f.link("s", layersDir, named), string(stored)) // a new link alone
	lacks, err = f.Wanted(t.Context(), marked, gone)
	if f.ok(err); len(lacks) == 0 || lacks[0].Digest != stored {
		t.Fatalf("linked: %+v", lacks)
	}
	f.ok(f.files.remove(t.Context(), f.link("s", layersDir, named)))
	image := f.manifest("r", named) // by a push that was validated before the links were hidden
	lacks, err = f.Wanted(t.Context(), marked, gone)
	f.ok(err)
	for _, l := range lacks {
		there, err := f.Mend(l)
		if f.ok(err); !there {
			t.Errorf("%+v is not back", l)
		}
	}
	left, err := f.Lacks(t.Context(), f.look())
	if f.ok(err); len(left) > 0 {
		t.Errorf("image %s lacks %+v", image, left)
	}
}

func hiddenAliasesResolve(f filled) {
	t := f.t
	stored, named := f.layer512("r", "layer")
	f.manifest("r", named)
	f.tick()
	taken, err := f.begin("run").Link("r", named, time.Now().Add(time.Hour))
	if f.ok(err); !taken {
		t.Fatal("the link was not taken")
	}
	all := f.look()
	if len(all.Orphans) > 0 {
		t.Errorf("orphans: %+v", all.Orphans)
	}
	lacks, err := f.Lacks(t.Context(), all)
	if f.ok(err); len(lacks) != 1 || lacks[0].Digest != named {
		t.Fatalf("lacks: %+v", lacks)
	}
	there, err := f.Mend(lacks[0])
	if f.ok(err); !there || !f.has(f.link("r", layersDir, named), f.data(stored)) {
		t.Error("it is not back")
	}
}

func unresolvedIsSaid(f filled) {
	t := f.t
	image := f.manifest("r", sum512("nobody has it"))
	r := f.repository("r")
	if len(r.Unresolved) != 1 || r.Unresolved[0].Manifest != image || r.Unresolved[0].Digest != sum512("nobody has it") {
		t.Errorf("%+v", r.Unresolved)
	}
	other := sum512("a manifest")
	f.write(f.link("s", revisionsDir, other), string(other))
	f.tag("s", "t", other)
	s := f.repository("s")
	if len(s.Doubts) != 1 || s.Doubts[0].Digest != other || s.Doubts[0].Bytes == 0 || len(s.Tags) != 1 || s.Tags[0].Digest != other {
		t.Errorf("%+v", s)
	}
}

func unnamedLinksAreFound(f filled) {
	t := f.t
	layer := f.layer("a", "layer")
	f.push("a", layer)
	f.layer("b", "layer")
	f.push("b")
	stored, named := f.layer512("c", "other")
	f.manifest("c", named)
	f.write(f.link("d", layersDir, named), string(stored))
	all := f.look()
	if len(all.Orphans) > 0 {
		t.Errorf("orphans: %+v", all.Orphans)
	}
	for _, r := range all.Repositories {
		want := map[string]content.Digest{"b": layer, "d": named}[r.Name]
		switch {
		case want == "" && len(r.Unnamed) > 0, want != "" && (len(r.Unnamed) != 1 || r.Unnamed[0].Digest != want || r.Unnamed[0].Linked.IsZero()):
			t.Errorf("%s: %+v", r.Name, r.Unnamed)
		}
	}
}

func removedAliasesWait(f filled) {
	t := f.t
	stored, named := f.layer512("r", "layer")
	image := f.manifest("r", named)
	r := f.repository("r")
	f.tick()
	taken, err := f.begin("run").Manifest("r", image, r.Manifests[0].Linked, nil)
	if f.ok(err); !taken {
		t.Fatal("it was not taken")
	}
	at := time.Now()
	all, err := f.Inventory(t.Context(), inventory.Look{Removed: []inventory.Removed{{Repository: "r", Digest: image, At: at}}})
	f.ok(err)
	for _, o := range all.Orphans {
		if !o.Removed.Equal(at) {
			t.Errorf("%s was removed at %s", o.Digest, o.Removed)
		}
	}
	if len(all.Orphans) != 2 || !slices.ContainsFunc(all.Orphans, func(o inventory.Orphan) bool { return o.Digest == stored }) {
		t.Errorf("%+v", all.Orphans)
	}
	_, missing, err := f.Restore(quarantine.Entry{Run: "run", Kind: "manifest", Repository: "r", Digest: string(image)}, time.Now())
	if f.ok(err); missing {
		t.Error("it cannot come back")
	}
}
