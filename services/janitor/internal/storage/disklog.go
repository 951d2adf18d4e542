package storage

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
)

// diskLog is a log in one file.
type diskLog struct{ *os.File }

func (d *disk) log(path string, isNew bool) (_ log, err error) {
	if isNew {
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			return nil, denied(err)
		}
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, denied(err)
	}
	// A line that was cut by the end of the process is no part of the next one.
	whole, err := wholeLines(file)
	if err == nil {
		err = file.Truncate(whole)
	}
	if err == nil {
		_, err = file.Seek(whole, io.SeekStart)
	}
	if err == nil && isNew {
		err = syncDir(filepath.Dir(filepath.Dir(path)))
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return diskLog{file}, nil
}

func wholeLines(r io.Reader) (size int64, _ error) {
	in := bufio.NewReaderSize(r, 1<<20)
	for {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return size, nil
		}
		if err != nil {
			return size, err
		}
		size += int64(len(line))
	}
}

func (l diskLog) add(lines []byte) error {
	_, err := l.Write(lines)
	if err := errors.Join(err, l.Sync()); err != nil {
		return denied(err)
	}
	return nil
}

func (d *disk) readLog(path string) (io.ReadCloser, error) { return os.Open(path) }

// syncDir makes renames in a directory last over a loss of power.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
