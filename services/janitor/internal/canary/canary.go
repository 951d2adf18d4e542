// Package canary finds out, by small things of its own, whether a registry remembers blobs that were
// taken from its storage, and whether its notifications of pushes and pulls arrive.
//
// A registry with storage.cache.blobdescriptor says for ever that it has what another
// process has removed: HEAD answers 200, and a push that names it is accepted and cannot be
// pulled (distribution#1803, #4569). And one that notifies of pushes only, or a replica of it that
// notifies of nothing, has what is pulled daily look unused.
package canary

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

// Repository is where the canary's blob lives, and PullRepository its manifest.
const (
	Repository     = "kiln-janitor/canary"
	PullRepository = "kiln-janitor/canary-pulls"
)

// Registry is what is asked of the registry here.
type Registry interface {
	PutBlob(ctx context.Context, repository string, data []byte) (content.Digest, error)
	DeleteBlob(ctx context.Context, repository string, digest content.Digest) error
	PutManifest(ctx context.Context, repository string, mediaType content.MediaType, data []byte) (content.Digest, error)
	DeleteManifest(ctx context.Context, repository string, digest content.Digest) error
	// HasBlob and HasManifest ask over a connection of their own, which may be to another replica each
	// time.
	HasBlob(ctx context.Context, repository string, digest content.Digest) (bool, error)
	HasManifest(ctx context.Context, repository string, digest content.Digest) (bool, error)
}

// Storage is what is asked of its storage here.
type Storage interface {
	// Forget takes the files of a blob away.
	Forget(repository string, digest content.Digest) error
	// ForgetManifest takes those of a manifest away.
	ForgetManifest(repository string, digest content.Digest) error
	// ForgetRepository takes a repository away.
	ForgetRepository(name string) error
}

// Ears hear notifications. nil: none are configured.
type Ears interface {
	// Await waits until so many notifications of an action ("push", "pull") on something have come.
	Await(ctx context.Context, action, repository string, digest content.Digest, count int) error
}

// Found is what the canary has found out.
type Found struct {
	Caches bool
	Lag    time.Duration // of notifications of a push; with Deaf, how long it waited
	Deaf   bool          // notifications are configured, and those of a push do not arrive
	// DeafToPulls says that those of pushes arrive, and not those of all pulls.
	DeafToPulls bool
	At          time.Time
}

// Canary sings for one registry.
type Canary struct {
	Registry Registry
	Storage  Storage // nil: out of reach, and then it is not found out whether the registry caches
	Ears     Ears
	// Patience is how long it waits for a notification.
	Patience time.Duration

	mu   sync.Mutex // one song at a time
	last Found
}

// replicas is how often the registry is asked, which may be several behind one address,
// each with a memory and notifications of its own.
const replicas = 6

// Sing finds out how things are, or were at most so long ago.
func (c *Canary) Sing(ctx context.Context, ago time.Duration) (found Found, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.last.At.IsZero() && time.Since(c.last.At) < ago {
		return c.last, nil
	}
	if c.Storage != nil {
		if found.Caches, err = c.caches(ctx); err != nil {
			return found, err
		}
	}
	if c.Ears != nil {
		if err := c.listen(ctx, &found); err != nil {
			return found, err
		}
	}
	found.At = time.Now()
	c.last = found
	return found, ctx.Err()
}

// caches reports whether the registry remembers a blob that is gone.
func (c *Canary) caches(ctx context.Context) (caches bool, err error) {
	digest, err := c.Registry.PutBlob(ctx, Repository, []byte("kiln canary "+rand.Text()))
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, c.clean(ctx, digest)) }()
	if err := c.ask(func() (bool, error) { return c.Registry.HasBlob(ctx, Repository, digest) }, errNotTaken); err != nil {
		return false, err
	}
	if err := c.Storage.Forget(Repository, digest); err != nil {
		return false, fault.Wrap(err, fault.FailedPrecondition, "WRONG_STATE",
			fmt.Sprintf("what was pushed to %s is not in the storage that the janitor was given, or cannot be removed", Repository),
			"set it to the registry's storage.filesystem.rootdirectory, and let the janitor's user write there")
	}
	for range replicas {
		is, err := c.Registry.HasBlob(ctx, Repository, digest)
		if err != nil {
			return false, err
		}
		caches = caches || is
	}
	return caches, nil
}

// errNotTaken is that something is not there that was just pushed.
var errNotTaken = fault.New(fault.Unavailable, "REGISTRY_UNAVAILABLE", "the registry does not have what it just accepted",
	"look at the registry's log and its storage")

// ask asks through each replica whether something is there.
func (c *Canary) ask(has func() (bool, error), otherwise error) error {
	for range replicas {
		is, err := has()
		if err != nil {
			return err
		}
		if !is {
			return otherwise
		}
	}
	return nil
}

// manifest is one of a kind of its own that names a blob.
const manifest = `{"schemaVersion":2,"mediaType":%[1]q,"config":{"mediaType":"application/vnd.kiln.canary","digest":%[2]q,"size":%[3]d},` +
	`"layers":[{"mediaType":"application/vnd.kiln.canary","digest":%[2]q,"size":%[3]d}]}`

// listen pushes a manifest, pulls it through each replica, and waits for the notifications of that.
func (c *Canary) listen(ctx context.Context, found *Found) (err error) {
	text := []byte("kiln canary " + rand.Text())
	blob, err := c.Registry.PutBlob(ctx, PullRepository, text)
	if err != nil {
		return err
	}
	var pushed content.Digest
	defer func() { err = errors.Join(err, c.cleanPulls(ctx, blob, pushed)) }()
	document := fmt.Appendf(nil, manifest, content.OCIManifest, blob, len(text))
	pushed, err = c.Registry.PutManifest(ctx, PullRepository, content.OCIManifest, document)
	if err != nil {
		return err
	}
	since := time.Now()
	if err := c.ask(func() (bool, error) { return c.Registry.HasManifest(ctx, PullRepository, pushed) }, errNotTaken); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, c.Patience)
	defer cancel()
	found.Deaf = c.Ears.Await(waiting, "push", PullRepository, pushed, 1) != nil
	found.Lag = time.Since(since)
	if !found.Deaf {
		found.DeafToPulls = c.Ears.Await(waiting, "pull", PullRepository, pushed, replicas) != nil
	}
	return nil
}

// clean takes away what caches has left, also from the registry's memory.
func (c *Canary) clean(ctx context.Context, digest content.Digest) error {
	ctx, cancel := cleaning(ctx)
	defer cancel()
	_ = c.Registry.DeleteBlob(ctx, Repository, digest) // It may not allow that; the blob is random, and nobody asks for it.
	_ = c.Storage.Forget(Repository, digest)           // Where it was not yet.
	return c.Storage.ForgetRepository(Repository)
}

// cleanPulls takes away what listen has left: the manifest first, which nobody may find without its
// blob.
func (c *Canary) cleanPulls(ctx context.Context, blob, pushed content.Digest) error {
	ctx, cancel := cleaning(ctx)
	defer cancel()
	if pushed != "" {
		_ = c.Registry.DeleteManifest(ctx, PullRepository, pushed) // It may not allow that.
	}
	if c.Storage == nil {
		_ = c.Registry.DeleteBlob(ctx, PullRepository, blob)
		return nil
	}
	var err error
	if pushed != "" {
		err = c.Storage.ForgetManifest(PullRepository, pushed)
	}
	_ = c.Storage.Forget(PullRepository, blob) // Where it is not yet, and else nobody asks for it.
	return errors.Join(err, c.Storage.ForgetRepository(PullRepository))
}

func cleaning(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
}
