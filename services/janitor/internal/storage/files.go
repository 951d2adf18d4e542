package storage

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/check"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

// files are those of a registry's storage and of the janitor, by their paths: files of a
// disk, or objects of a registry's storage driver. What is moved is told from what was
// written meanwhile, as well as they can.
type files interface {
	reader
	// frozen are the files below a directory as they are now, for a look at most of them. It
	// may be that they go on to change under it.
	frozen(ctx context.Context, dir string) (reader, error)
	// atomic reports that nothing is lost which is written as it is moved. Where it may be, it
	// is looked for afterwards.
	atomic() bool
	// settled is how old a file must have been as it was looked at, so that it has another
	// time if it was written again since.
	settled() time.Duration
	// lag is for how long what another host has written may not be seen.
	lag() time.Duration
	// disk is how much room there is; zero where that has no bound.
	disk() (check.Disk, error)
	// writable is an error when they cannot be written.
	writable() error

	// put writes a file where there is none.
	put(path string, text []byte) error
	// take moves a file or directory; false when it is not there.
	take(from, to string) (bool, error)
	// takeIf moves a small file that is, by what is known of it and its text, as it should be,
	// also when it is written at that moment.
	takeIf(from, to string, is func(file stat, text string) bool) (bool, error)
	// giveBack moves a file or directory to where nothing is: what is there stays, and so does
	// what was to be moved.
	giveBack(from, to string) (given, occupied bool, err error)
	// touch makes that a file was written at a time, where files tell other times than that at
	// which they were.
	touch(path string, at time.Time) error
	// remove removes a file or directory, with all below it. It is no error when nothing is
	// there.
	remove(ctx context.Context, path string) error
	// hide moves a directory that is to be removed to where it is no more taken for one.
	hide(dir, to string) error
	// tidy removes empty directories, from one upwards, but not the last; tidyBelow also those
	// below it.
	tidy(dir, last string)
	tidyBelow(dir, last string) error

	// log opens a log of lines, a new one or one to go on with; readLog reads it, without a line that was cut.
	// It is os.ErrNotExist when there is none.
	log(path string, isNew bool) (log, error)
	readLog(path string) (io.ReadCloser, error)
	// lock is held by one process at most, until it lets go or ends. The context ends when it
	// is lost.
	lock(ctx context.Context, path, run string) (held context.Context, unlock func(), err error)
}

// reader looks at files.
type reader interface {
	// list is what is in a directory that is looked at again and again; nothing when it is not
	// there. What is in it may be remembered.
	list(dir string) (directory, error)
	// names are those in another one.
	names(dir string) ([]string, error)
	place
	// open reads a file that may be large.
	open(path string) (io.ReadCloser, error)
}

// place is where files are looked at by their paths from there.
type place interface {
	// within looks at several files below a directory: their paths are then from there, which
	// is less work. It is no error when the directory is not there: nothing is there, then.
	within(dir string, do func(place) error) error
	// stat looks at a file or directory.
	stat(path string) (stat, error)
	// read reads a file that is small: at most most bytes, and some. It is os.ErrNotExist when
	// it is not there.
	read(path string, most int) ([]byte, error)
	// with reads one for a function that does not keep its text, and is called again with more of
	// it until it says that this is the whole, or there is no more.
	with(path string, most int, do func(text []byte) (whole bool)) error
}

// readWith reads a file for a function, where text is not shared.
func readWith(p place, path string, most int, do func(text []byte) bool) error {
	text, err := p.read(path, most)
	if err == nil {
		do(text)
	}
	return err
}

// below is a directory of another place.
type below struct {
	place
	dir string
}

func (b below) within(dir string, do func(place) error) error {
	return do(below{b.place, b.dir + "/" + dir})
}

func (b below) stat(path string) (stat, error) { return b.place.stat(b.dir + "/" + path) }

func (b below) with(path string, most int, do func(text []byte) bool) error {
	return b.place.with(b.dir+"/"+path, most, do)
}

func (b below) read(path string, most int) ([]byte, error) {
	return b.place.read(b.dir+"/"+path, most)
}

// log is a log of lines.
type log interface {
	// add adds lines; when it returns, they outlast a loss of power.
	add(lines []byte) error
	Close() error
}

// stat is what is known of a file or directory.
type stat struct {
	there    bool
	size     int64
	modified time.Time // when it was last written
	changed  time.Time // when it was last renamed or changed; zero where files do not tell
	inode    inode     // zero where files have none
}

// inode says which file or directory it is, whatever its path.
type inode struct{ device, number uint64 }

// directory is what was in one.
type directory struct {
	at     time.Time     // when it was last changed; zero where directories do not tell
	hashes []content.Sum // names that are digests
	names  []string      // the others
	links  []string      // of all these, symbolic links
}

// all are all names.
func (d directory) all() []string {
	all := make([]string, 0, len(d.names)+len(d.hashes))
	all = append(all, d.names...)
	for _, h := range d.hashes { // a tag may look like one
		all = append(all, h.Hex())
	}
	return all
}

var errGone = os.ErrNotExist
