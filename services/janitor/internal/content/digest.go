package content

import (
	"bytes"
	"encoding/hex"
	"regexp"
	"unique"
)

// Digest names bytes by what they are, such as "sha256:…".
type Digest string

// sha256 begins nearly all digests.
const sha256 = "sha256:"

var digestForm = regexp.MustCompile(`^[a-z0-9]+([+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]{32,}$`)

// Valid says whether the digest has the form of one.
func (d Digest) Valid() bool { return NewBlob(d, 0).valid() }

// Sum is the digest's own bytes; false when it is none of sha256.
func (d Digest) Sum() (Sum, bool) {
	if len(d) != len(sha256)+2*len(Sum{}) || d[:len(sha256)] != sha256 {
		return Sum{}, false
	}
	return SumOf(string(d[len(sha256):]))
}

// Sum is a digest of sha256, as its bytes: a million take 32 MB.
type Sum [32]byte

// SumOf reads a sum in hexadecimal digits; false when it is none.
func SumOf[T ~string | ~[]byte](text T) (s Sum, ok bool) {
	if len(text) != 2*len(s) {
		return s, false
	}
	for i := range s {
		a, b := nibbles[text[2*i]], nibbles[text[2*i+1]]
		if a|b > 0xf {
			return s, false
		}
		s[i] = a<<4 | b
	}
	return s, true
}

// nibbles are the values of lower-case hexadecimal digits, and 0xff.
var nibbles = func() (table [256]byte) {
	for i := range table {
		table[i] = 0xff
	}
	for i, c := range []byte("0123456789abcdef") {
		table[c] = byte(i)
	}
	return table
}()

// Compare orders sums as their digits are.
func (s Sum) Compare(other Sum) int { return bytes.Compare(s[:], other[:]) }

// Hex is the sum in hexadecimal digits.
func (s Sum) Hex() string { return hex.EncodeToString(s[:]) }

// Digest is the digest of the sum.
func (s Sum) Digest() Digest {
	var text [len(sha256) + 2*len(s)]byte
	copy(text[:], sha256)
	hex.Encode(text[len(sha256):], s[:])
	return Digest(text[:])
}

// Blob names bytes that a registry stores. It is small: a large registry has a million.
type Blob struct {
	sum   Sum
	other unique.Handle[Digest] // of another algorithm, in place of the sum; zero: none
	Bytes int64
}

// NewBlob is the blob of a digest.
func NewBlob(d Digest, bytes int64) Blob {
	if sum, is := d.Sum(); is && sum != (Sum{}) { // which says that there is none
		return Blob{sum: sum, Bytes: bytes}
	}
	b := Blob{Bytes: bytes}
	if d != "" {
		b.other = unique.Make(d)
	}
	return b
}

// isSum says that it is of sha256.
func (b Blob) isSum() bool { return b.other == unique.Handle[Digest]{} }

// valid says whether its digest has the form of one.
func (b Blob) valid() bool { return b.sum != Sum{} || digestForm.MatchString(string(b.Digest())) }

// Digest is the digest of the blob, and empty where there is none.
func (b Blob) Digest() Digest {
	switch {
	case !b.isSum():
		return b.other.Value()
	case b.sum == Sum{}:
		return ""
	}
	return b.sum.Digest()
}

// Sum is the sum of the blob's digest; false when that is none of sha256.
func (b Blob) Sum() (Sum, bool) { return b.sum, b.isSum() }

// Is reports whether it is the blob of a digest.
func (b Blob) Is(d Digest) bool { return b == NewBlob(d, b.Bytes) }
