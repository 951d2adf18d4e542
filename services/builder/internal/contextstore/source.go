package contextstore

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	// maxWindow is what a zstd stream may have its decoder remember: twice what
	// `zstd -19` does.
	maxWindow = 16 << 20
	// freeRatio is how many bytes may come of however few: small contexts compress
	// well, and cost little.
	freeRatio = 64 << 20
	readAhead = 256 << 10
)

// source is the tar in an archive: decompressed, and held to the limits.
type source struct {
	ctx      context.Context
	limits   Limits
	packed   *packed
	tar      io.Reader
	unpacked int64
	ended    bool  // the end was read
	failed   error // a limit, or ctx's error, that Read returned
	close    func()
}

// newSource finds out how an archive is compressed. The source must be closed.
func newSource(ctx context.Context, limits Limits, archive *packed) (*source, error) {
	s := &source{ctx: ctx, limits: limits, packed: archive, close: func() {}}
	ahead := bufio.NewReaderSize(archive, readAhead)
	head, err := ahead.Peek(4)
	switch {
	case len(head) == 0 && errors.Is(err, io.EOF):
		return nil, invalid("the archive is empty", "send a tar, plain or compressed by gzip or zstd")
	case err != nil && !errors.Is(err, io.EOF):
		return nil, err
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		decoder, err := gzip.NewReader(ahead)
		if err != nil {
			return nil, s.explain(err)
		}
		s.tar = decoder
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		// One at a time, it decodes in the caller's goroutine.
		decoder, err := zstd.NewReader(ahead, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
		if err != nil {
			return nil, s.explain(err)
		}
		s.tar, s.close = decoder, decoder.Close
	default:
		s.tar = ahead
	}
	return s, nil
}

// Read implements io.Reader. What it returns with an error was read well.
func (s *source) Read(p []byte) (int, error) {
	if err := s.check(); err != nil {
		s.failed = err
		return 0, err
	}
	n, err := s.tar.Read(p)
	s.unpacked += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil // it comes again, and then alone
	}
	s.ended = s.ended || errors.Is(err, io.EOF)
	return n, err
}

// check holds the archive to the limits that count bytes.
func (s *source) check() error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	if s.unpacked > s.limits.MaxBytes {
		return over("max_bytes", fmt.Sprintf("the archive holds more than %d bytes", s.limits.MaxBytes))
	}
	if s.unpacked > freeRatio && s.unpacked/max(1, s.packed.n) > int64(s.limits.MaxRatio) {
		return over("max_ratio", fmt.Sprintf("the archive unpacks to more than %d times its bytes", s.limits.MaxRatio))
	}
	return nil
}

// finish reads what comes after the tar's last entry: zeros, and no more.
func (s *source) finish(buf []byte) error {
	if s.ended {
		return cut()
	}
	for {
		n, err := s.Read(buf)
		if len(bytes.Trim(buf[:n], "\x00")) > 0 {
			return invalid("the archive goes on after its end", "send one tar and nothing behind it")
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return s.explain(err)
		}
	}
}

// explain says what an error of reading the archive means: the sender's own error
// and a limit are what they are, and all else is the archive's fault.
func (s *source) explain(err error) error {
	switch {
	case s.packed.failed != nil:
		return s.packed.failed
	case s.failed != nil:
		return s.failed
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return cut()
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return invalid(fmt.Sprintf("the archive needs a zstd window of more than %d bytes", maxWindow),
			"compress with zstd -19 or less, and without --long")
	default:
		failed := invalid("the archive cannot be read", "send a tar, plain or compressed by gzip or zstd")
		failed.Err = err
		return failed
	}
}

func cut() error { return invalid("the archive is cut short", "send it to its end, and again") }

// packed is the archive as it comes.
type packed struct {
	from   io.Reader
	sum    hash.Hash // nil: not counted
	n      int64
	failed error // of from, but for its end
}

// Read implements io.Reader.
func (p *packed) Read(b []byte) (int, error) {
	n, err := p.from.Read(b)
	p.n += int64(n)
	if p.sum != nil {
		p.sum.Write(b[:n])
	}
	if err != nil && !errors.Is(err, io.EOF) {
		p.failed = err
	}
	return n, err
}

func (p *packed) digest() Digest { return Digest(p.sum.Sum(nil)) }
