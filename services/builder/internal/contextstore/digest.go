package contextstore

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Digest is a SHA-256.
type Digest [sha256.Size]byte

const algorithm = "sha256:"

// ParseDigest reads "sha256:" and 64 lower-case hexadecimal digits.
func ParseDigest(text string) (Digest, error) {
	if digits, ok := strings.CutPrefix(text, algorithm); ok {
		if d, ok := digestOfHex(digits); ok {
			return d, nil
		}
	}
	return Digest{}, fault.Invalid("digest", text, "is not a digest",
		`send "sha256:" and 64 lower-case hexadecimal digits`)
}

// String is the digest as ParseDigest reads it.
func (d Digest) String() string { return algorithm + d.hex() }

func (d Digest) hex() string { return hex.EncodeToString(d[:]) }

func digestOfHex(digits string) (d Digest, ok bool) {
	if len(digits) != hex.EncodedLen(len(d)) || strings.ToLower(digits) != digits {
		return Digest{}, false
	}
	_, err := hex.Decode(d[:], []byte(digits))
	return d, err == nil
}

// blobName is the name of a blob below blobDir.
func blobName(d Digest) string {
	digits := d.hex()
	return digits[:2] + "/" + digits
}

func blobPath(d Digest) string { return blobDir + "/" + blobName(d) }

func manifestPath(d Digest) string { return contextDir + "/" + d.hex() }
