package storage

import (
	"context"
	digester "crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"strings"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

// hashOf is the hash of a digest's algorithm; false when it is none that is known.
func hashOf(digest content.Digest) (hash.Hash, bool) {
	switch algorithm, _, _ := strings.Cut(string(digest), ":"); algorithm {
	case sha256:
		return digester.New(), true
	case "sha384":
		return sha512.New384(), true
	case "sha512":
		return sha512.New(), true
	}
	return nil, false
}

// ReadBlob reads a blob of a repository and reports whether its bytes have its digest. took is called with
// the bytes that were read, before more are: it may wait. A blob that is gone is whole: it
// went meanwhile.
func (s *Storage) ReadBlob(ctx context.Context, repository string, digest content.Digest, took func(n int) error) (whole bool, err error) {
	stored, err := s.target(repository, digest)
	if err != nil || stored == "" {
		return err == nil, err
	}
	file, err := s.open(s.data(stored))
	if errors.Is(err, errGone) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = file.Close() }() // It was only read.
	sum, known := hashOf(digest)
	if !known {
		return true, nil // and no more can be said
	}
	buffer := make([]byte, 256<<10)
	for {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		n, err := file.Read(buffer)
		_, _ = sum.Write(buffer[:n]) // which takes all
		if n > 0 {
			if err := took(n); err != nil {
				return false, err
			}
		}
		if errors.Is(err, io.EOF) {
			return hex.EncodeToString(sum.Sum(nil)) == hexOf(digest), nil
		}
		if err != nil {
			return false, err
		}
	}
}
