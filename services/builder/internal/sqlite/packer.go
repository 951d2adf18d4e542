package sqlite

import (
	"github.com/klauspost/compress/zstd"
)

// maxRequest is the most bytes that a packed request may have when unpacked.
const maxRequest = 1 << 30

// packer compresses requests, which repeat themselves: a Dockerfile, labels,
// inline files. It may be used by several goroutines.
type packer struct {
	encoder *zstd.Encoder
	decoder *zstd.Decoder
}

func newPacker() (packer, error) {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return packer{}, err
	}
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxRequest), zstd.WithDecoderLowmem(true))
	if err != nil {
		return packer{}, err
	}
	return packer{encoder: encoder, decoder: decoder}, nil
}

// pack compresses data, and says whether that made it smaller: else it returns
// it as it is, and never nil, which would be NULL.
func (p packer) pack(data []byte) ([]byte, bool) {
	if len(data) == 0 {
		return []byte{}, false
	}
	if packed := p.encoder.EncodeAll(data, nil); len(packed) < len(data) {
		return packed, true
	}
	return data, false
}

func (p packer) unpack(data []byte, packed bool) ([]byte, error) {
	if !packed {
		return data, nil
	}
	return p.decoder.DecodeAll(data, nil)
}

func (p packer) close() {
	if p.decoder != nil {
		p.decoder.Close()
	}
}
