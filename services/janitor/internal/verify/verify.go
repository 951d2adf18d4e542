// Package verify proves that a registry is whole: every manifest resolves, and every blob
// has the bytes that its digest says.
package verify

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/enforce"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// Storage is what is asked of the registry's storage here.
type Storage interface {
	Inventory(ctx context.Context, look inventory.Look) (inventory.Registry, error)
	Lacks(ctx context.Context, r inventory.Registry) ([]inventory.Lack, error)
	// ReadBlob reads a blob of a repository and reports whether its bytes have its digest.
	ReadBlob(ctx context.Context, repository string, digest content.Digest, took func(n int) error) (whole bool, err error)
}

// Progress is how far a verification has come.
type Progress struct {
	Manifests, TotalManifests int64
	Blobs, TotalBlobs         int64
	Bytes                     int64
	Defects                   int64
}

// Ask says what to verify.
type Ask struct {
	Repositories []policy.Glob // none: all
	SkipContent  bool
	BytesASecond int64 // 0: no bound
}

// Event is what happens. One field is set.
type Event struct {
	Progress *Progress
	Defect   *run.Defect
	Finished *Progress
}

// tellEvery is how often progress is told.
const tellEvery = time.Second

// Run verifies, and calls emit for all that happens; an error of emit ends it.
func Run(ctx context.Context, s Storage, ask Ask, emit func(Event) error) error {
	registry, err := s.Inventory(ctx, inventory.Look{})
	if err != nil {
		return unreadable(ctx, err)
	}
	if registry.Repositories, err = chosen(registry.Repositories, ask.Repositories); err != nil {
		return err
	}
	v := &verification{storage: s, emit: emit, registry: registry}
	blobs := v.blobs()
	v.at = Progress{TotalBlobs: int64(len(blobs))}
	for _, r := range registry.Repositories {
		v.at.TotalManifests += int64(len(r.Manifests) + len(r.Doubts))
	}
	lacks, err := s.Lacks(ctx, registry)
	if err != nil {
		return unreadable(ctx, err)
	}
	for _, d := range enforce.Defects(registry, lacks) {
		if err := v.defect(d); err != nil {
			return err
		}
	}
	v.at.Manifests = v.at.TotalManifests
	if !ask.SkipContent {
		if err := v.read(ctx, blobs, ask.BytesASecond); err != nil {
			return err
		}
	}
	v.at.Blobs = v.at.TotalBlobs
	done := v.at
	return emit(Event{Finished: &done})
}

func unreadable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fault.Wrap(err, fault.Unavailable, "REGISTRY_UNAVAILABLE", "the registry's storage cannot be read", "let the janitor's user read it, and check registry.storage_root")
}

// chosen are the repositories that globs fit; one that fits none is a NOT_FOUND fault.
func chosen(all []inventory.Repository, globs []policy.Glob) (some []inventory.Repository, _ error) {
	if len(globs) == 0 {
		return all, nil
	}
	for _, g := range globs {
		if !slices.ContainsFunc(all, func(r inventory.Repository) bool { return g.Fits(r.Name) }) {
			return nil, fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("there is no repository %q", g), "kiln janitor usage lists those that there are")
		}
	}
	for _, r := range all {
		if slices.ContainsFunc(globs, func(g policy.Glob) bool { return g.Fits(r.Name) }) {
			some = append(some, r)
		}
	}
	return some, nil
}

type verification struct {
	storage  Storage
	registry inventory.Registry
	emit     func(Event) error
	at       Progress
	told     time.Time
}

// blob is one that a manifest of a repository names, or a manifest.
type blob struct {
	repository string
	digest     content.Digest
}

// blobs are those that manifests name, these included, each once.
func (v *verification) blobs() (all []blob) {
	seen := map[content.Digest]bool{}
	for _, r := range v.registry.Repositories {
		for _, m := range r.Manifests {
			for _, b := range append([]content.Blob{content.NewBlob(m.Digest, m.Bytes)}, m.Blobs...) {
				if d := b.Digest(); !seen[d] {
					seen[d] = true
					all = append(all, blob{r.Name, d})
				}
			}
		}
	}
	return all
}

func (v *verification) defect(d run.Defect) error {
	v.at.Defects++
	return v.emit(Event{Defect: &d})
}

// read reads blobs, at most so many bytes a second, and compares them with their digests.
func (v *verification) read(ctx context.Context, blobs []blob, most int64) error {
	limit := rate.NewLimiter(rate.Inf, 1<<20)
	if most > 0 {
		limit = rate.NewLimiter(rate.Limit(most), int(max(most, 1<<18)))
	}
	for _, b := range blobs {
		digest := b.digest
		whole, err := v.storage.ReadBlob(ctx, b.repository, digest, func(n int) error {
			v.at.Bytes += int64(n)
			if err := v.tell(); err != nil {
				return err
			}
			return limit.WaitN(ctx, n)
		})
		if err != nil {
			return unreadable(ctx, err)
		}
		v.at.Blobs++
		if !whole {
			err = v.defect(run.Defect{
				Kind: run.CorruptBlob, Digest: string(digest), References: v.references(digest), Message: "its bytes do not have its digest",
				Remedy: "delete what names it and push that again: a registry does not take the bytes of a blob that it has",
			})
		}
		if err == nil {
			err = v.tell()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (v *verification) tell() error {
	if time.Since(v.told) < tellEvery {
		return nil
	}
	v.told = time.Now()
	p := v.at
	return v.emit(Event{Progress: &p})
}

// references are those that cannot be pulled without a blob.
func (v *verification) references(digest content.Digest) (all []string) {
	for _, r := range v.registry.Repositories {
		for _, m := range r.Manifests {
			if m.Digest != digest && !slices.ContainsFunc(m.Blobs, func(b content.Blob) bool { return b.Is(digest) }) {
				continue
			}
			all = append(all, r.Name+"@"+string(m.Digest))
			for _, t := range r.Tags {
				if t.Digest == m.Digest {
					all = append(all, r.Name+":"+t.Name)
				}
			}
		}
	}
	slices.Sort(all)
	return all
}
