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

// list calls do for the names in a directory, which does not keep them. It is no error when
// that is not there. The runtime's way costs some more calls and a string for each name, which
// is most of the time of a look at a large registry.
func list(dir string, do func(name []byte)) error {
	fd, err := openRetry(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer func() { _ = unix.Close(fd) }() // It was only read.
	buffer, _ := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buffer)
	for {
		n, err := unix.ReadDirent(fd, buffer[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "readdirent", Path: dir, Err: err}
		}
		if n == 0 {
			return nil
		}
		entries(buffer[:n], do)
	}
}

// entries reads records of getdents64(2).
func entries(buffer []byte, do func(name []byte)) {
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
		if s := string(name); s != "." && s != ".." {
			do(name)
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
	err = list(dir, func(name []byte) { all = append(all, string(name)) })
	return all, err
}

// changedAt is when a directory was last changed; zero when it is not there.
func changedAt(dir string) (time.Time, error) {
	is, err := (&disk{}).stat(dir)
	return is.modified, err
}

// directoryAt is an open directory.
type directoryAt struct {
	fd  int
	dir string // for errors
}

func (d *disk) within(dir string, do func(place) error) error {
	fd, err := openRetry(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return do(below{d, dir}) // each file says what is the matter
	}
	defer func() { _ = unix.Close(fd) }() // It was only looked in.
	return do(directoryAt{fd, dir})
}

func (d directoryAt) stat(path string) (stat, error) { return statAt(d.fd, path) }

func (d directoryAt) read(path string, most int) ([]byte, error) { return readAt(d.fd, path, most) }

func (d *disk) stat(path string) (stat, error) { return statAt(unix.AT_FDCWD, path) }

func (d *disk) read(path string, most int) ([]byte, error) {
	return readAt(unix.AT_FDCWD, path, most)
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
	return stat{there: true, size: st.Size, modified: time.Unix(st.Mtim.Unix()), changed: time.Unix(st.Ctim.Unix())}, nil
}

func readAt(dir int, path string, most int) ([]byte, error) {
	fd, err := openAt(dir, path, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }() // It was only read.
	buffer, _ := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buffer)
	var out []byte
	for {
		n, err := unix.Read(fd, buffer[:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		}
		out = append(out, buffer[:n]...)
		if n == 0 || len(out) > most {
			return out, nil
		}
	}
}

// directories remembers what is in directories that have not changed since they were read:
// whoever adds or removes a name changes their time.
type directories struct {
	mu  sync.Mutex
	all map[string]directory
}

// settled is how old a change must be so that one after it is seen: file systems tell times
// by the tick.
var settled = 2 * time.Second // tests set it

// read is what is in a directory: digests, and other names.
func (d *directories) read(dir string) (directory, error) {
	at, err := changedAt(dir)
	d.mu.Lock()
	was, known := d.all[dir]
	if known && at.IsZero() {
		delete(d.all, dir)
	}
	d.mu.Unlock()
	if err != nil || at.IsZero() {
		return directory{}, err
	}
	if known && was.at.Equal(at) {
		return was, nil
	}
	is := directory{at: at}
	old := time.Since(at) > settled
	err = list(dir, func(name []byte) {
		if h, ok := content.SumOf(name); ok {
			is.hashes = append(is.hashes, h)
		} else {
			is.names = append(is.names, string(name))
		}
	})
	is.hashes, is.names = slices.Clone(is.hashes), slices.Clone(is.names) // without room to grow
	if err != nil || !old {
		return is, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all == nil {
		d.all = map[string]directory{}
	}
	d.all[dir] = is
	return is, nil
}
