package storage

import (
	"context"
	digester "crypto/sha256"
	"encoding/hex"
	"errors"
	"io"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

// ReadBlob reads a blob and reports whether its bytes have its digest. took is called with
// the bytes that were read, before more are: it may wait. A blob that is gone is whole: it
// went meanwhile.
func (s *Storage) ReadBlob(ctx context.Context, digest content.Digest, took func(n int) error) (whole bool, err error) {
	file, err := s.open(s.data(digest))
	if errors.Is(err, errGone) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = file.Close() }() // It was only read.
	sum := digester.New()
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
