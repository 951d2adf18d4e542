// Package canary finds out, by a small blob of its own, whether a registry remembers blobs
// that were taken from its storage, and how long its notifications take.
//
// A registry with storage.cache.blobdescriptor says for ever that it has what another
// process has removed: HEAD answers 200, and a push that names it is accepted and cannot be
// pulled (distribution#1803, #4569).
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

// Repository is where the canary lives.
const Repository = "kiln-janitor/canary"

// Registry is what is asked of the registry here.
type Registry interface {
	PutBlob(ctx context.Context, repository string, data []byte) (content.Digest, error)
	HasBlob(ctx context.Context, repository string, digest content.Digest) (bool, error)
	DeleteBlob(ctx context.Context, repository string, digest content.Digest) error
}

// Storage is what is asked of its storage here.
type Storage interface {
	// Forget takes the files of a blob away.
	Forget(repository string, digest content.Digest) error
	// ForgetRepository takes a repository away.
	ForgetRepository(name string) error
}

// Ears hear notifications. nil: none are configured.
type Ears interface {
	// Await waits until the push of a blob is told of.
	Await(ctx context.Context, repository string, digest content.Digest) error
}

// Found is what the canary has found out.
type Found struct {
	Caches bool
	Lag    time.Duration // of notifications; with Deaf, how long it waited
	Deaf   bool          // notifications are configured, and do not arrive
	At     time.Time
}

// Canary sings for one registry.
type Canary struct {
	Registry Registry
	Storage  Storage
	Ears     Ears
	// Patience is how long it waits for a notification.
	Patience time.Duration

	mu   sync.Mutex // one song at a time
	last Found
}

// replicas is how often the registry is asked, which may be several behind one address,
// each with a memory of its own.
const replicas = 6

// Sing finds out how things are, or were at most so long ago.
func (c *Canary) Sing(ctx context.Context, ago time.Duration) (found Found, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.last.At.IsZero() && time.Since(c.last.At) < ago {
		return c.last, nil
	}
	digest, err := c.Registry.PutBlob(ctx, Repository, []byte("kiln canary "+rand.Text()))
	if err != nil {
		return found, err
	}
	pushed := time.Now()
	defer func() { err = errors.Join(err, c.clean(ctx, digest)) }()
	if err := c.ask(ctx, digest, func(is bool) error {
		if !is {
			return fault.New(fault.Unavailable, "REGISTRY_UNAVAILABLE", "the registry does not have a blob that it has just taken", "look at the registry's log and its storage")
		}
		return nil
	}); err != nil {
		return found, err
	}
	if err := c.Storage.Forget(Repository, digest); err != nil {
		return found, fault.Wrap(err, fault.FailedPrecondition, "WRONG_STATE", fmt.Sprintf("what was pushed to %s is not in the storage that the janitor was given, or cannot be removed", Repository),
			"set it to the registry's storage.filesystem.rootdirectory, and let the janitor's user write there")
	}
	err = c.ask(ctx, digest, func(is bool) error {
		found.Caches = found.Caches || is
		return nil
	})
	if err != nil {
		return found, err
	}
	if c.Ears != nil {
		waiting, cancel := context.WithTimeout(ctx, c.Patience)
		defer cancel()
		found.Deaf = c.Ears.Await(waiting, Repository, digest) != nil
		found.Lag = time.Since(pushed)
	}
	found.At = time.Now()
	c.last = found
	return found, ctx.Err()
}

func (c *Canary) ask(ctx context.Context, digest content.Digest, do func(bool) error) error {
	for range replicas {
		is, err := c.Registry.HasBlob(ctx, Repository, digest)
		if err == nil {
			err = do(is)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// clean takes away what the canary has left, also from the registry's memory.
func (c *Canary) clean(ctx context.Context, digest content.Digest) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_ = c.Registry.DeleteBlob(ctx, Repository, digest) // It may not allow that; the blob is random, and nobody asks for it.
	_ = c.Storage.Forget(Repository, digest)           // Where it was not yet.
	return c.Storage.ForgetRepository(Repository)
}
