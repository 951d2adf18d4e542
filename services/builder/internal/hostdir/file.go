package hostdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// ErrSpecial is the error of a file that is neither regular nor a link to one.
var ErrSpecial = errors.New("is not a regular file")

// OpenFile opens a regular file below root for reading and returns what fstat says of
// it. It never waits for the other end of a FIFO and never reads a device or socket:
// their error is ErrSpecial. A hung network file system can still block it.
func OpenFile(root *os.Root, name string) (*os.File, fs.FileInfo, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ENXIO) { // a socket, or a device that nothing drives
		return nil, nil, &fs.PathError{Op: "open", Path: name, Err: ErrSpecial}
	}
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("%w, but %s", ErrSpecial, kind(info.Mode()))}
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, info, nil
}

// kind says what a file is.
func kind(mode fs.FileMode) string {
	switch {
	case mode.IsRegular():
		return "a regular file"
	case mode.IsDir():
		return "a directory"
	case mode&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeDevice != 0:
		return "a device"
	default:
		return "a file of type " + mode.Type().String()
	}
}
