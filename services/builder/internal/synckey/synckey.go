// Package synckey derives the keys under which daemons keep local files between
// builds.
//
// BuildKit syncs files incrementally: it compares what a client offers with what it
// kept under the same key, by name, size, mode and time, and takes only what
// differs. Whoever can name the key of another can therefore put files into its
// builds. So no daemon sees a key that a caller chose or can guess: it sees a MAC, under a
// key of the builder, of who builds what. The same inputs give the same key on every
// connection and after a restart, so that incremental sync goes on working.
package synckey

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"

	"github.com/kilnbuild/kiln/pkg/statedir"
)

// size is that of the builder's key, in bytes.
const size = 32

// Keys derives keys.
type Keys struct{ secret []byte }

// Open returns keys under the secret of a state directory, which it makes if it is
// not there. Errors: those of statedir.Key.
func Open(stateDir string) (Keys, error) {
	secret, err := statedir.Key(stateDir, "sync.key", size)
	return Keys{secret}, err
}

// Client returns the key of a client of the gateway, from who it is, the project it
// builds for, and the key that it sent.
func (k Keys) Client(identity, project, sent string) string {
	return k.derive("client", identity, project, sent)
}

// Build returns the key of a build of the API, from who asked for it, its project, and
// what tells its contexts apart.
func (k Keys) Build(identity, project, context string) string {
	return k.derive("build", identity, project, context)
}

// derive returns the MAC of parts. Each has its length before it, so that no two
// lists of parts read the same.
func (k Keys) derive(parts ...string) string {
	mac := hmac.New(sha256.New, k.secret)
	for _, part := range parts {
		mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		mac.Write([]byte(part))
	}
	return hex.EncodeToString(mac.Sum(nil))
}
