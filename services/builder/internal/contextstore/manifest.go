package contextstore

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// Entry is a file, directory or symbolic link of a context.
type Entry struct {
	Path    string      // relative, clean, "/" between names
	Mode    fs.FileMode // the type, permissions, setuid, setgid and sticky bit
	ModTime int64       // seconds since 1970
	Size    int64       // bytes of a regular file
	Digest  Digest      // of a regular file's content
	Target  string      // of a symbolic link
}

// totals are the sums over a context's regular files.
type totals struct{ files, bytes int64 }

// manifest is a context: all entries, in the order of comparePaths, each after
// the directory it is in.
type manifest struct {
	totals
	entries []Entry
}

// comparePaths orders paths so that a directory is followed by all that is in
// it: "/" is before all other bytes. It is the order in which BuildKit transfers.
func comparePaths(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] == b[i] {
			continue
		}
		if a[i] == '/' || b[i] != '/' && a[i] < b[i] {
			return -1
		}
		return 1
	}
	return len(a) - len(b)
}

// A manifest's encoding, of which the context's digest is made: records that end
// in NUL, which no path holds.
//
//	kiln-context-1 <files> <bytes>
//	d <mode> <time> <path>                     a directory
//	f <mode> <time> <size> <sha256> <path>     a file
//	l <mode> <time> <path> NUL <target>        a symbolic link
//
// Modes are octal, as tar has them; times are seconds since 1970.
const magic = "kiln-context-1"

// encode writes the manifest and returns its digest and size.
func (m manifest) encode(to io.Writer) (Digest, int64, error) {
	hash := sha256.New()
	counted := &countingWriter{to: io.MultiWriter(to, hash)}
	w := bufio.NewWriterSize(counted, 64<<10)
	record := strconv.AppendInt([]byte(magic+" "), m.files, 10)
	record = strconv.AppendInt(append(record, ' '), m.bytes, 10)
	_, err := w.Write(append(record, 0))
	for i := range m.entries {
		if err != nil {
			break
		}
		record = m.entries[i].append(record[:0])
		_, err = w.Write(record)
	}
	err = errors.Join(err, w.Flush())
	return Digest(hash.Sum(nil)), counted.n, err
}

// mostBytes returns what the encoding of the manifest takes at most.
func (m manifest) mostBytes() int64 {
	bytes := int64(recordBytes)
	for i := range m.entries {
		bytes += int64(recordBytes + len(m.entries[i].Path) + len(m.entries[i].Target))
	}
	return bytes
}

// append adds the entry's record to b.
func (e *Entry) append(b []byte) []byte {
	b = append(b, kindOf(e.Mode), ' ')
	b = strconv.AppendInt(b, tarMode(e.Mode), 8)
	b = strconv.AppendInt(append(b, ' '), e.ModTime, 10)
	b = append(b, ' ')
	switch {
	case e.Mode.IsRegular():
		b = strconv.AppendInt(b, e.Size, 10)
		b = append(b, ' ')
		b = append(b, e.Digest.hex()...)
		b = append(b, ' ')
		b = append(b, e.Path...)
	case e.Mode&fs.ModeSymlink != 0:
		b = append(b, e.Path...)
		b = append(b, 0)
		b = append(b, e.Target...)
	default:
		b = append(b, e.Path...)
	}
	return append(b, 0)
}

func kindOf(mode fs.FileMode) byte {
	switch {
	case mode.IsDir():
		return 'd'
	case mode&fs.ModeSymlink != 0:
		return 'l'
	default:
		return 'f'
	}
}

var errManifest = errors.New("malformed manifest")

// decode reads what encode wrote.
func decode(text string) (manifest, error) {
	header, rest, ok := strings.Cut(text, "\x00")
	if !ok {
		return manifest{}, errManifest
	}
	sums, err := decodeTotals(header)
	if err != nil {
		return manifest{}, err
	}
	m := manifest{totals: sums, entries: make([]Entry, 0, strings.Count(rest, "\x00"))}
	for rest != "" {
		var e Entry
		if e, rest, err = decodeEntry(rest); err != nil {
			return manifest{}, err
		}
		m.entries = append(m.entries, e)
	}
	return m, nil
}

func decodeTotals(header string) (totals, error) {
	var t totals
	if _, err := fmt.Sscanf(header, magic+" %d %d", &t.files, &t.bytes); err != nil {
		return totals{}, errManifest
	}
	return t, nil
}

// decodeEntry reads one entry and returns what comes after it.
func decodeEntry(text string) (e Entry, rest string, err error) {
	record, rest, ok := strings.Cut(text, "\x00")
	kind, record, ok1 := strings.Cut(record, " ")
	mode, record, ok2 := strings.Cut(record, " ")
	modTime, record, ok3 := strings.Cut(record, " ")
	if !ok || !ok1 || !ok2 || !ok3 {
		return Entry{}, "", errManifest
	}
	bits, err1 := strconv.ParseInt(mode, 8, 32)
	e.ModTime, err = strconv.ParseInt(modTime, 10, 64)
	if err != nil || err1 != nil {
		return Entry{}, "", errManifest
	}
	e.Mode = fileMode(bits)
	switch kind {
	case "d":
		e.Mode, e.Path = e.Mode|fs.ModeDir, record
	case "l":
		e.Mode, e.Path = e.Mode|fs.ModeSymlink, record
		if e.Target, rest, ok = strings.Cut(rest, "\x00"); !ok {
			return Entry{}, "", errManifest
		}
	case "f":
		size, record, _ := strings.Cut(record, " ")
		digits, record, _ := strings.Cut(record, " ")
		e.Path = record
		e.Digest, ok = digestOfHex(digits)
		if e.Size, err = strconv.ParseInt(size, 10, 64); err != nil || !ok || e.Size < 0 {
			return Entry{}, "", errManifest
		}
	default:
		return Entry{}, "", errManifest
	}
	if e.Path == "" {
		return Entry{}, "", errManifest
	}
	return e, rest, nil
}

// modeBits are the bits beside the permissions, as tar and as Go has them.
var modeBits = [...]struct {
	tar int64
	fs  fs.FileMode
}{{0o4000, fs.ModeSetuid}, {0o2000, fs.ModeSetgid}, {0o1000, fs.ModeSticky}}

// fileMode is the permissions, setuid, setgid and sticky bit of a tar's mode.
// They are kept, as buildctl keeps them of a directory: they are facts about the
// image that is built, and no file of the store has them.
func fileMode(bits int64) fs.FileMode {
	mode := fs.FileMode(bits & 0o777) //nolint:gosec // 9 bits
	for _, bit := range modeBits {
		if bits&bit.tar != 0 {
			mode |= bit.fs
		}
	}
	return mode
}

func tarMode(mode fs.FileMode) int64 {
	bits := int64(mode.Perm())
	for _, bit := range modeBits {
		if mode&bit.fs != 0 {
			bits |= bit.tar
		}
	}
	return bits
}

// readManifest reads a manifest and checks that it has the digest of its name.
func (s *Store) readManifest(path string, want Digest) (manifest, error) {
	data, err := s.root.ReadFile(path)
	if err != nil {
		return manifest{}, err
	}
	if sha256.Sum256(data) != want {
		return manifest{}, errors.New("the manifest is damaged")
	}
	return decode(string(data))
}

// readTotals reads the first record of a manifest.
func (s *Store) readTotals(path string) (totals, error) {
	f, err := s.root.Open(path)
	if err != nil {
		return totals{}, err
	}
	defer f.Close()
	var start [len(magic) + 48]byte
	n, err := io.ReadFull(f, start[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return totals{}, err
	}
	header, _, ok := strings.Cut(string(start[:n]), "\x00")
	if !ok {
		return totals{}, errManifest
	}
	return decodeTotals(header)
}

// writeManifest writes a manifest so that it outlives a power failure.
func writeManifest(root *os.Root, name string, m manifest) (Digest, int64, error) {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return Digest{}, 0, onDisk(err)
	}
	d, size, err := m.encode(f)
	return d, size, onDisk(errors.Join(err, f.Sync(), f.Close()))
}

type countingWriter struct {
	to io.Writer
	n  int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.to.Write(p)
	w.n += int64(n)
	return n, err
}
