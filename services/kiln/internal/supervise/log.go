package supervise

import (
	"bytes"
	"errors"
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

// openLog opens a log file for appending.
func openLog(path string) (*os.File, error) {
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
}

// Tail returns the last lines of a log file, empty when there is nothing.
func Tail(path string) string {
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer file.Close()
	whole := false
	if _, err := file.Seek(-tailBytes, io.SeekEnd); err != nil {
		// Shorter than that: Seek left the offset at the start.
		whole = true
	}
	data, err := io.ReadAll(io.LimitReader(file, tailBytes))
	if err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	lines := strings.Split(string(bytes.TrimSpace(data)), "\n")
	if !whole && len(lines) > 1 {
		lines = lines[1:] // The first one is cut.
	}
	return strings.Join(lines[max(0, len(lines)-tailLines):], "\n")
}

// tailOf is Tail as the end of a message, with the path.
func tailOf(path string) string {
	tail := Tail(path)
	if tail == "" {
		return "; its log is " + path
	}
	return "; the end of " + path + ":\n" + tail
}
