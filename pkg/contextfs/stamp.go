package contextfs

import (
	"encoding/binary"
	"hash/fnv"
	"io/fs"
	"time"
)

// Stamp returns the time, in Unix nanoseconds, that BuildKit is shown as a file's
// modification time. BuildKit keeps a file that it has when size, mode and time are
// the same. That a tool wrote other content in place and set the time back (tar, Nix,
// Bazel, a link to another release), shows in the file's inode and change time only.
// Stamp therefore keeps the time to the millisecond, or to the second when the file
// has no more, and fills the rest with a digest of device, inode and change time. It
// is the same as long as nobody touches the file, except for one that changed just
// now: it may change again within the same tick of the clock, so each call returns
// another stamp. Another host or a copy of the directory has other stamps, too. Layers
// keep seconds only. Files that are not regular keep their time.
func Stamp(info fs.FileInfo) int64 {
	modified := info.ModTime().UnixNano()
	id, ok := identityOf(info)
	if !ok || !info.Mode().IsRegular() {
		return modified
	}
	step := int64(time.Millisecond)
	if modified%int64(time.Second) == 0 {
		step = int64(time.Second) // a tool set it
	}
	salt := int64(0)
	if now := time.Now().UnixNano(); now-id.changed < int64(justNow) {
		salt = now
	}
	digest := fnv.New64a()
	for _, part := range [...]uint64{id.device, id.inode, uint64(id.changed), uint64(modified), uint64(salt)} { //nolint:gosec // bits
		var bytes [8]byte
		binary.LittleEndian.PutUint64(bytes[:], part)
		_, _ = digest.Write(bytes[:]) // never fails
	}
	return modified - mod(modified, step) + int64(digest.Sum64()%uint64(step)) //nolint:gosec // less than a second
}

// justNow is longer than a tick of the clock of change times, which is 10 ms at most.
const justNow = 50 * time.Millisecond

// mod is the remainder that is not negative, also of times before 1970.
func mod(n, step int64) int64 { return ((n % step) + step) % step }

// identity is what a file system tells files and their versions apart by.
type identity struct {
	device, inode uint64
	changed       int64 // its change time, which no program can set
}
