package contextstore

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

// content takes the content of a file, which r yields, and returns its digest.
type content func(r io.Reader, size int64) (Digest, error)

// unpack reads an archive to its end and lists what is in it. An error is of the
// archive, or one that keep returned.
func unpack(src *source, keep content) (manifest, error) {
	files := newListing(src.limits)
	archive := tar.NewReader(src)
	for headers := 0; ; headers++ {
		hdr, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files.manifest(), nil
		}
		if err != nil {
			return manifest{}, src.explain(err)
		}
		// Also those count that add nothing: each costs time.
		if headers == src.limits.MaxEntries {
			return manifest{}, tooMany(src.limits)
		}
		if err := addHeader(files, hdr, archive, keep); err != nil {
			return manifest{}, err
		}
	}
}

// addHeader adds the entry that a header describes.
func addHeader(files *listing, hdr *tar.Header, body io.Reader, keep content) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil // git archive writes the commit's id into one
	}
	name, err := cleanName(hdr.Name, files.limits)
	if err != nil {
		return err
	}
	e := Entry{Path: name, Mode: fileMode(hdr.Mode), ModTime: hdr.ModTime.Unix()}
	switch hdr.Typeflag {
	case tar.TypeDir:
		if name == "." {
			return nil // the root of a context has no mode
		}
		e.Mode |= fs.ModeDir
	case tar.TypeSymlink:
		// What a link's permissions are differs from system to system, and means nothing.
		e.Mode, e.Target = fs.ModeSymlink|0o777, hdr.Linkname
		err = checkTarget(name, hdr.Linkname, files.limits)
	case tar.TypeLink:
		e, err = files.link(name, hdr.Linkname)
	case tar.TypeReg:
		e.Size = hdr.Size
		err = checkFile(name, hdr)
	default:
		err = refused(name, "is "+specialName(hdr.Typeflag)+", which a context cannot hold", "leave it out of the archive")
	}
	if err != nil {
		return err
	}
	if name == "." {
		return refused(hdr.Name, "has no name", "give every entry a name")
	}
	if err := files.check(&e); err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeReg {
		if e.Digest, err = keep(body, hdr.Size); err != nil {
			return err
		}
	}
	return files.add(e)
}

// checkFile refuses a sparse file, whose few bytes stand for any number.
func checkFile(name string, hdr *tar.Header) error {
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return refused(name, "is a sparse file", "make the archive without --sparse")
		}
	}
	return nil
}

// specialName says what the entries are that no context holds.
func specialName(flag byte) string {
	switch flag {
	case tar.TypeChar:
		return "a character device"
	case tar.TypeBlock:
		return "a block device"
	case tar.TypeFifo:
		return "a fifo"
	case tar.TypeGNUSparse:
		return "a sparse file"
	default:
		return fmt.Sprintf("of type %q", flag)
	}
}
