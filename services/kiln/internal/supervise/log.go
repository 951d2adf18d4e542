package supervise

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
)

const (
	// maxLog is the size, in bytes, at which a log file is put aside; one old file is
	// kept.
	maxLog = 64 << 20
	// tailBytes and tailLines are how much of a log is worth showing.
	tailBytes = 8 << 10
	tailLines = 15
)

// OpenLog opens a log file for appending. A file that has grown large is put
// aside first.
func OpenLog(path string) (*os.File, error) {
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
}

// Log is a log file that is put aside when it has grown large, also while its program
// runs. It may be written to from several goroutines.
type Log struct {
	path string
	most int64 // bytes

	mu   sync.Mutex
	file *os.File
	size int64
}

// NewLog opens a log file for appending. At most bytes it is renamed to PATH.1, and a new
// one is begun. 0: 64 MiB.
func NewLog(path string, most int64) (*Log, error) {
	l := &Log{path: path, most: cmp.Or(most, maxLog)}
	return l, l.open()
}

func (l *Log) open() error {
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return errors.Join(err, file.Close())
	}
	l.file, l.size = file, info.Size()
	return nil
}

// Write appends data, and always succeeds: a file that cannot be put aside, or written to,
// costs lines of the log, and never holds up the program that writes them.
func (l *Log) Write(data []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > 0 && l.size+int64(len(data)) > l.most && os.Rename(l.path, l.path+".1") == nil {
		old := l.file
		if l.open() == nil {
			_ = old.Close()
		}
	}
	n, _ := l.file.Write(data)
	l.size += int64(n)
	return len(data), nil
}

// Close closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Close()
}

// tailFrom returns the last lines of what a log file has from an offset on, empty
// when that is nothing.
func tailFrom(path string, offset int64) string {
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return ""
	}
	if info.Size() < offset {
		offset = 0 // The file that offset was of has been put aside.
	}
	start := max(offset, info.Size()-tailBytes)
	data, err := io.ReadAll(io.NewSectionReader(file, start, tailBytes))
	if err != nil {
		return ""
	}
	lines := strings.Split(string(bytes.TrimSpace(data)), "\n")
	if start > offset && len(lines) > 1 {
		lines = lines[1:] // The first one is cut.
	}
	return strings.Join(lines[max(0, len(lines)-tailLines):], "\n")
}
