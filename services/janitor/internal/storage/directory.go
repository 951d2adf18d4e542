package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

// list calls do for the names in a directory, which does not keep them, and their types, and says
// when it was last changed before that. It is no error when that is not there. The runtime's way costs some more calls and a string for each name, which
// is most of the time of a look at a large registry.
func list(dir string, do func(name []byte, is byte)) (at time.Time, _ error) {
	fd, err := openRetry(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return at, nil
	}
	if err != nil {
		return at, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer func() { _ = unix.Close(fd) }() // It was only read.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return at, &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	at = time.Unix(st.Mtim.Unix())
	buffer, _ := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buffer)
	for {
		n, err := unix.ReadDirent(fd, buffer[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return at, &fs.PathError{Op: "readdirent", Path: dir, Err: err}
		}
		if n == 0 {
			return at, nil
		}
		entries(buffer[:n], do)
	}
}

// entries reads records of getdents64(2).
func entries(buffer []byte, do func(name []byte, is byte)) {
	const nameAt = 19 // after inode, offset, length and type
	for len(buffer) >= nameAt {
		length := int(binary.NativeEndian.Uint16(buffer[16:]))
		if length < nameAt || length > len(buffer) {
			return
		}
		name := buffer[nameAt:length]
		if end := bytes.IndexByte(name, 0); end >= 0 {
			name = name[:end]
		}
		if string(name) != "." && string(name) != ".." { // so written, they are compared in place
			do(name, buffer[nameAt-1])
		}
		buffer = buffer[length:]
	}
}

const bufferSize = 64 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

func openRetry(path string, flags int) (int, error) { return openAt(unix.AT_FDCWD, path, flags) }

func openAt(dir int, path string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, path, flags, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// names are those in a directory; none when it is not there.
func names(dir string) (all []string, err error) {
	_, err = list(dir, func(name []byte, _ byte) { all = append(all, string(name)) })
	return all, err
}

// directoryAt is an open directory.
type directoryAt struct{ fd int }

func (d *disk) within(dir string, do func(place) error) error {
	return withinAt(d, unix.AT_FDCWD, dir, do)
}

func (d directoryAt) within(dir string, do func(place) error) error {
	return withinAt(d, d.fd, dir, do)
}

func withinAt(p place, at int, dir string, do func(place) error) error {
	fd, err := openAt(at, dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return do(below{p, dir}) // each file says what is the matter
	}
	defer func() { _ = unix.Close(fd) }() // It was only looked in.
	return do(directoryAt{fd})
}

func (d directoryAt) stat(path string) (stat, error) { return statAt(d.fd, path) }

func (d directoryAt) read(path string, most int) ([]byte, error) { return readAt(d.fd, path, most) }

func (d *disk) stat(path string) (stat, error) { return statAt(unix.AT_FDCWD, path) }

func (d *disk) read(path string, most int) ([]byte, error) {
	return readAt(unix.AT_FDCWD, path, most)
}

func (d directoryAt) with(path string, most int, do func(text []byte) bool) error {
	return withAt(d.fd, path, most, do)
}

func (d *disk) with(path string, most int, do func(text []byte) bool) error {
	return withAt(unix.AT_FDCWD, path, most, do)
}

func statAt(fd int, path string) (stat, error) {
	var st unix.Stat_t
	err := unix.Fstatat(fd, path, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return stat{}, nil
	}
	if err != nil {
		return stat{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	return stat{
		there: true, size: st.Size, modified: time.Unix(st.Mtim.Unix()), changed: time.Unix(st.Ctim.Unix()),
		inode: inode{uint64(st.Dev), st.Ino}, //nolint:unconvert // not on every system one of 64 bits
	}, nil
}

func readAt(dir int, path string, most int) (out []byte, err error) {
	err = withAt(dir, path, most, func(text []byte) bool {
		out = append(out, text[len(out):]...)
		return false
	})
	return out, err
}

// withAt reads into a buffer that is used again.
func withAt(dir int, path string, most int, do func(text []byte) bool) error {
	fd, err := openAt(dir, path, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }() // It was only read.
	buffer, _ := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buffer)
	text := buffer[:0]
	for {
		if len(text) == cap(text) {
			text = slices.Grow(text, len(text))
		}
		n, err := unix.Read(fd, text[len(text):cap(text)])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return &fs.PathError{Op: "read", Path: path, Err: err}
		}
		text = text[:len(text)+n]
		if whole := do(text); whole || n == 0 || len(text) > most {
			return nil
		}
	}
}

// directories remembers what is in directories that have not changed since they were read:
// whoever adds or removes a name changes their time.
type directories struct {
	mu  sync.Mutex
	all map[string]directory
}

// settled is how old a change must have been as it was looked at, so that one after it has
// another time: file systems tell times by the tick.
var settled = 2 * time.Second // tests set it

// read is what is in a directory: digests, and other names.
func (d *directories) read(dir string, settled time.Duration) (directory, error) {
	d.mu.Lock()
	was, known := d.all[dir]
	d.mu.Unlock()
	if known {
		if now, err := statAt(unix.AT_FDCWD, dir); err != nil || now.modified.Equal(was.at) {
			return was, err
		}
	}
	began := time.Now()
	is, err := readDirectory(dir)
	if err != nil || began.Sub(is.at) <= settled && !is.at.IsZero() {
		return is, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case is.at.IsZero(): // it is not there
		delete(d.all, dir)
	case d.all == nil:
		d.all = map[string]directory{dir: is}
	default:
		d.all[dir] = is
	}
	return is, nil
}

// isLink reports whether a name is that of a symbolic link, where directories do not tell.
func isLink(dir string, name []byte) bool {
	if _, sum := content.SumOf(name); sum {
		return false // there are many, and a repository is hardly called so
	}
	var st unix.Stat_t
	return unix.Lstat(dir+"/"+string(name), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK
}

// room is to put sums while it is not known how many there are.
var room = sync.Pool{New: func() any { return new([]content.Sum) }}

func readDirectory(dir string) (is directory, err error) {
	sums, _ := room.Get().(*[]content.Sum)
	defer room.Put(sums)
	*sums = (*sums)[:0]
	is.at, err = list(dir, func(name []byte, kind byte) {
		if kind == unix.DT_LNK || kind == unix.DT_UNKNOWN && isLink(dir, name) {
			is.links = append(is.links, string(name))
		}
		if h, ok := content.SumOf(name); ok {
			*sums = append(*sums, h)
		} else {
			is.names = append(is.names, string(name))
		}
	})
	is.hashes = slices.Clone(*sums)
	return is, err
}
