// Package disk tells a full disk from other errors of the builder's own files.
package disk

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Explain gives an error of the files of a store its reason: RESOURCE_EXHAUSTED
// (DISK_FULL) when the disk, or its user's quota, is full; else it is a fault of
// Kiln or of its host, named after the store. Nil stays nil.
func Explain(store string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fault.Wrap(err, fault.ResourceExhausted, "DISK_FULL", "the builder's disk is full",
			"free disk under state_dir of the builder, or give it more, and try again")
	default:
		return fmt.Errorf("%s: %w", store, err)
	}
}
