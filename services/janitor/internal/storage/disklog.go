package storage

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// diskLog is a log in one file.
type diskLog struct {
	*os.File
	disk *disk
	size int64
}

// journalBytes is the room that a new journal is given at once.
const journalBytes = 256 << 10

func (d *disk) log(path string, isNew bool) (_ log, err error) {
	var file *os.File
	err = d.withRoom(func() (err error) {
		if isNew {
			if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
				return err
			}
		}
		if file, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640); err != nil {
			return err
		}
		if isNew && errors.Is(unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, journalBytes), unix.ENOSPC) {
			return errors.Join(unix.ENOSPC, file.Close())
		}
		return nil
	})
	if err != nil {
		return nil, denied(err)
	}
	// A line that was cut by the end of the process is no part of the next one.
	whole, err := wholeLines(file)
	if err == nil {
		err = file.Truncate(whole)
	}
	if err == nil && isNew {
		err = syncDir(filepath.Dir(filepath.Dir(path)))
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &diskLog{file, d, whole}, nil
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

func (l *diskLog) add(lines []byte) error {
	err := l.disk.withRoom(func() error {
		_, err := l.WriteAt(lines, l.size) // over what was cut when there was no room
		return err
	})
	if err := errors.Join(err, l.Sync()); err != nil {
		return denied(err)
	}
	l.size += int64(len(lines))
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
