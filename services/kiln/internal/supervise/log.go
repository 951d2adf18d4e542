package supervise

import (
	"bytes"
	"io"
	"os"
	"strings"
)

const (
	// maxLog is the size, in bytes, at which a start begins a new log file; one
	// old file is kept.
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
