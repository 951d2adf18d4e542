package contextstore_test

import (
	"archive/tar"
	"bytes"
	"maps"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/contextstore"
)

// good is a small archive with a little of everything that may be in one.
func good(t testing.TB) []byte {
	return tarOf(t,
		item{Name: "pax_global_header", Type: tar.TypeXGlobalHeader, PAX: map[string]string{"comment": "abc"}},
		item{Name: "./", Type: tar.TypeDir, Mode: 0o700},
		item{Name: "./Dockerfile", Body: "FROM scratch\n", Time: 5},
		item{Name: "./src/", Type: tar.TypeDir, Mode: 0o750, Time: 7},
		item{Name: "./src/run", Body: strings.Repeat("x", 1000), Mode: 0o4755},
		item{Name: "./src/again", Type: tar.TypeLink, Link: "./src/run"},
		item{Name: "./src/link", Type: tar.TypeSymlink, Link: "../Dockerfile"},
		item{Name: "./deep/down/file", Body: "y"},
		item{Name: "./empty"},
	)
}

// bad is an archive that is refused, and how.
type bad struct {
	archive []byte
	says    string // in the message
	kind    fault.Kind
	reason  string
	limit   string // the key of the configuration
	want    string // digest announced
}

func badArchives(t testing.TB) map[string]bad {
	cases := smallBadArchives(t)
	maps.Copy(cases, largeBadArchives(t))
	return cases
}

// largeBadArchives take a while to make.
func largeBadArchives(t testing.TB) map[string]bad {
	whole := good(t)
	return expected(map[string]bad{
		"zstd, a large window":    {archive: zstdOf(t, bytes.Repeat(whole, 9000), zstd.WithWindowSize(32<<20)), says: "window"},
		"too many bytes":          {archive: tooManyBytes(t), limit: "contexts.max_bytes"},
		"too many bytes by links": {archive: linkBomb(t), limit: "contexts.max_bytes"},
		"too many bytes behind":   {archive: append(bytes.Clone(whole), make([]byte, 81<<20)...), limit: "contexts.max_bytes"},
		"gzip bomb":               {archive: bomb(t, gzipOf), limit: "contexts.max_ratio"},
		"zstd bomb":               {archive: bomb(t, zstdPlain), limit: "contexts.max_ratio"},
		"bomb of what is no tar":  {archive: append(zstdOf(t, whole), bytes.Repeat(zstdOf(t, make([]byte, 1<<20)), 70)...), limit: "contexts.max_ratio"},
	})
}

func smallBadArchives(t testing.TB) map[string]bad {
	whole := good(t)
	entry := func(items ...item) []byte { return tarOf(t, items...) }
	return expected(map[string]bad{
		"empty":                   {archive: nil, says: "is empty"},
		"no tar":                  {archive: []byte("<html><body>not found</body></html>"), says: "cut short"},
		"no tar, long":            {archive: bytes.Repeat([]byte("not a tar "), 200), says: "cannot be read"},
		"no end":                  {archive: whole[:len(whole)-1024], says: "cut short"},
		"half an end":             {archive: whole[:len(whole)-512], says: "cut short"},
		"cut in a header":         {archive: whole[:512*3+100], says: "cut short"},
		"cut in a file":           {archive: entry(item{Name: "a", Body: strings.Repeat("x", 3000)})[:2000], says: "cut short"},
		"cut in a large file":     {archive: entry(item{Name: "a", Body: strings.Repeat("x", 1<<20)})[:700_000], says: "cut short"},
		"gzip, cut":               {archive: cutEnd(gzipOf(t, whole), 9), says: "cut short"},
		"gzip, no checksum":       {archive: cutEnd(gzipOf(t, whole), 4), says: "cut short"},
		"gzip, header only":       {archive: gzipOf(t, whole)[:6], says: "cut short"},
		"gzip, damaged":           {archive: flip(gzipOf(t, whole), -6), says: "cannot be read"},
		"zstd, cut":               {archive: cutEnd(zstdOf(t, whole), 5), says: "cut short"},
		"zstd, damaged":           {archive: flip(zstdOf(t, whole), -2), says: "cannot be read"},
		"garbage behind":          {archive: append(bytes.Clone(whole), "garbage"...), says: "goes on after its end"},
		"a tar behind":            {archive: append(bytes.Clone(whole), whole...), says: "goes on after its end"},
		"gzip, garbage behind":    {archive: append(gzipOf(t, whole), "garbage, and more of it"...), says: "cannot be read"},
		"zstd, garbage behind":    {archive: append(zstdOf(t, whole), "garbage, and more of it"...), says: "cannot be read"},
		"another digest":          {archive: whole, want: digestOf([]byte("other")), says: "was announced", reason: "DIGEST_MISMATCH"},
		"no digest":               {archive: whole, want: "sha256:abc", says: "is not a digest", reason: "INVALID_FIELD"},
		"..":                      {archive: entry(item{Name: "../x"}), says: `has ".." in its name`},
		".. within":               {archive: entry(item{Name: "a/../b"}), says: `has ".." in its name`},
		".. at the end":           {archive: entry(item{Name: "a/..", Type: tar.TypeDir}), says: `has ".." in its name`},
		"absolute":                {archive: entry(item{Name: "/etc/passwd"}), says: "is absolute"},
		"absolute directory":      {archive: entry(item{Name: "/etc/", Type: tar.TypeDir}), says: "is absolute"},
		"no name":                 {archive: entry(item{Name: ""}), says: "has no name"},
		"the root is a link":      {archive: entry(item{Name: ".", Type: tar.TypeSymlink, Link: "a"}), says: "has no name"},
		"below a file":            {archive: entry(item{Name: "a"}, item{Name: "a/b"}), says: `is below "a", which is a file`},
		"far below a file":        {archive: entry(item{Name: "a"}, item{Name: "a/b/c/d"}), says: `is below "a", which is a file`},
		"below a symlink":         {archive: entry(item{Name: "a", Type: tar.TypeSymlink, Link: "b"}, item{Name: "a/b"}), says: "which is a symbolic link"},
		"a file, then a dir":      {archive: entry(item{Name: "a"}, item{Name: "a/", Type: tar.TypeDir}), says: "is a directory, and was a file before"},
		"a dir, then a file":      {archive: entry(item{Name: "a/b"}, item{Name: "a"}), says: "is a file, and was a directory before"},
		"a file, then a symlink":  {archive: entry(item{Name: "a"}, item{Name: "a", Type: tar.TypeSymlink, Link: "b"}), says: "is a symbolic link, and was a file before"},
		"symlink, absolute":       {archive: entry(item{Name: "a", Type: tar.TypeSymlink, Link: "/etc/passwd"}), says: "is a symbolic link to an absolute path"},
		"symlink, out":            {archive: entry(item{Name: "d/a", Type: tar.TypeSymlink, Link: "../../x"}), says: "leads out of the context"},
		"symlink, out, hidden":    {archive: entry(item{Name: "a", Type: tar.TypeSymlink, Link: "b/../../x"}), says: "leads out of the context"},
		"symlink to nothing":      {archive: rawLink(t, tar.TypeSymlink, ""), says: "is a symbolic link to nothing"},
		"hardlink to nothing":     {archive: entry(item{Name: "a", Type: tar.TypeLink, Link: "b"}), says: "no earlier file"},
		"hardlink to later":       {archive: entry(item{Name: "a", Type: tar.TypeLink, Link: "b"}, item{Name: "b"}), says: "no earlier file"},
		"hardlink to a directory": {archive: entry(item{Name: "b/", Type: tar.TypeDir}, item{Name: "a", Type: tar.TypeLink, Link: "b"}), says: "no earlier file"},
		"hardlink to a symlink":   {archive: entry(item{Name: "b", Type: tar.TypeSymlink, Link: "c"}, item{Name: "a", Type: tar.TypeLink, Link: "b"}), says: "no earlier file"},
		"hardlink, absolute":      {archive: entry(item{Name: "a", Type: tar.TypeLink, Link: "/etc/passwd"}), says: "no path in a context"},
		"hardlink, out":           {archive: entry(item{Name: "a", Type: tar.TypeLink, Link: "../x"}), says: "no path in a context"},
		"character device":        {archive: entry(item{Name: "a", Type: tar.TypeChar}), says: "is a character device"},
		"block device":            {archive: entry(item{Name: "a", Type: tar.TypeBlock}), says: "is a block device"},
		"fifo":                    {archive: entry(item{Name: "a", Type: tar.TypeFifo}), says: "is a fifo"},
		"unknown type":            {archive: entry(item{Name: "a", Type: 'Q'}), says: "is of type 'Q'"},
		"contiguous":              {archive: entry(item{Name: "a", Type: tar.TypeCont}), says: "is of type '7'"},
		"sparse, PAX":             {archive: sparsePAX(t), says: "is a sparse file"},
		"sparse, GNU":             {archive: sparseGNU(t), says: "sparse file"},
		"PAX bomb":                {archive: paxBomb(t), says: "cannot be read"},
		"a time far away":         {archive: entry(item{Name: "a", Time: 1 << 40}), says: "too far from now"},
		"a long path":             {archive: entry(item{Name: strings.Repeat("p/", 2100) + "f"}), limit: "contexts.max_path_bytes"},
		"a long target":           {archive: entry(item{Name: "a", Type: tar.TypeSymlink, Link: strings.Repeat("p", 5000)}), limit: "contexts.max_path_bytes"},
		"deep":                    {archive: entry(item{Name: strings.Repeat("p/", 129) + "f"}), limit: "contexts.max_depth"},
		"too many entries":        {archive: many(t, 2100), limit: "contexts.max_entries"},
		"one entry too often":     {archive: bytes.Join([][]byte{bytes.Repeat(entry(item{Name: "a"})[:512], 2100), make([]byte, 1024)}, nil), limit: "contexts.max_entries"},
		"too many directories":    {archive: deepMany(t), limit: "contexts.max_entries"},
	})
}

// expected fills in the kinds and reasons.
func expected(cases map[string]bad) map[string]bad {
	for name, c := range cases {
		if c.kind, c.reason = fault.InvalidArgument, or(c.reason, "ARCHIVE_INVALID"); c.limit != "" {
			c.kind, c.reason = fault.ResourceExhausted, "LIMIT_REACHED"
		}
		cases[name] = c
	}
	return cases
}

// tight are limits that the archives here can reach.
func tight() contextstore.Limits {
	l := limits()
	l.MaxBytes, l.MaxEntries, l.MaxRatio = 80<<20, 2000, 100
	return l
}

func TestPutRefuses(t *testing.T) {
	s, dir := newStore(t, tight())
	kept := put(t, s, good(t))
	before := onDisk(t, dir)
	for name, c := range badArchives(t) {
		t.Run(name, func(t *testing.T) {
			_, err := s.Put(t.Context(), project, bytes.NewReader(c.archive), c.want)
			f := wantFault(t, err, c.kind, c.reason)
			if !strings.Contains(f.Error(), c.says) {
				t.Errorf("says %q, want %q", f.Error(), c.says)
			}
			if f.Metadata["limit"] != c.limit {
				t.Errorf("names the limit %q, want %q", f.Metadata["limit"], c.limit)
			}
			if after := onDisk(t, dir); after != before {
				t.Errorf("left behind: before\n%s\nafter\n%s", before, after)
			}
		})
	}
	if _, err := s.Use(project, kept.Digest); err != nil {
		t.Error(err)
	}
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func cutEnd(data []byte, n int) []byte { return data[:len(data)-n] }

// flip changes a byte, counted from the end.
func flip(data []byte, at int) []byte {
	data = bytes.Clone(data)
	data[len(data)+at] ^= 0xff
	return data
}

// rawLink is a link whose target the tar package would not write.
func rawLink(t testing.TB, kind byte, target string) []byte {
	data := tarOf(t, item{Name: "a", Type: kind, Link: "placeholder"})
	copy(data[157:257], make([]byte, 100))
	copy(data[157:257], target)
	return checksummed(data)
}

// checksummed sets the checksum of the first header.
func checksummed(data []byte) []byte {
	copy(data[148:156], "        ")
	sum := 0
	for _, b := range data[:512] {
		sum += int(b)
	}
	copy(data[148:156], []byte{'0' + byte(sum>>15&7), '0' + byte(sum>>12&7), '0' + byte(sum>>9&7), '0' + byte(sum>>6&7), '0' + byte(sum>>3&7), '0' + byte(sum&7), 0, ' '})
	return data
}

// sparsePAX is a file of 8 exbibytes, in one block, in the PAX form of GNU tar.
func sparsePAX(t testing.TB) []byte {
	records := paxRecord("GNU.sparse.major", "1") + paxRecord("GNU.sparse.minor", "0") +
		paxRecord("GNU.sparse.name", "a") + paxRecord("GNU.sparse.realsize", "9223372036854775807")
	ext := tarOf(t, item{Name: "PaxHeaders.0/a", Body: records})
	ext[156] = 'x'
	return append(checksummed(ext)[:1024], tarOf(t, item{Name: "a", Body: "0\n" + strings.Repeat("\x00", 510)})...)
}

func paxRecord(key, value string) string {
	for n := len(key) + len(value) + 4; ; n++ {
		if record := itoa(n) + " " + key + "=" + value + "\n"; len(record) == n {
			return record
		}
	}
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + string(rune('0'+n%10))
}

// sparseGNU is a sparse file in the old form.
func sparseGNU(t testing.TB) []byte {
	data := tarOf(t, item{Name: "a", Body: "x"})
	data[156] = tar.TypeGNUSparse
	copy(data[257:265], "ustar  \x00")
	copy(data[386:410], "00000000000\x0000000000001\x00")
	copy(data[483:495], "77777777777\x00")
	return checksummed(data)
}

// paxBomb has an extended header of 2 GiB, of which it sends a little.
func paxBomb(t testing.TB) []byte {
	data := tarOf(t, item{Name: "PaxHeaders.0/a", Body: strings.Repeat("30 comment=aaaaaaaaaaaaaaaaaaa\n", 40_000)})
	data[156] = 'x'
	copy(data[124:136], "17777777777\x00")
	return checksummed(data)
}

func many(t testing.TB, n int) []byte {
	items := make([]item, n)
	for i := range items {
		items[i].Name = "f" + itoa(i)
	}
	return tarOf(t, items...)
}

// deepMany has few entries and many directories that they imply.
func deepMany(t testing.TB) []byte {
	items := make([]item, 50)
	for i := range items {
		items[i].Name = "d" + itoa(i) + "/" + strings.Repeat("p/", 60) + "f"
	}
	return tarOf(t, items...)
}

// bomb is a file of 70 MiB of zeros, in 70 members of the compressed format.
func bomb(t testing.TB, compress func(testing.TB, []byte) []byte) []byte {
	head := tarOf(t, item{Name: "zeros"})[:512]
	copy(head[124:136], "00430000000\x00") // octal
	return bytes.Join([][]byte{compress(t, checksummed(head)), bytes.Repeat(compress(t, make([]byte, 1<<20)), 70), compress(t, make([]byte, 1024))}, nil)
}

func zstdPlain(t testing.TB, data []byte) []byte { return zstdOf(t, data) }

// tooManyBytes has two files that are too much together.
func tooManyBytes(t testing.TB) []byte {
	head := tarOf(t, item{Name: "a"})[:512]
	copy(head[124:136], "00310000000\x00") // 50 MiB
	a := append(bytes.Clone(checksummed(head)), make([]byte, 50<<20)...)
	head[0] = 'b'
	return append(a, checksummed(head)...)
}

// linkBomb is 1,000 names of one file.
func linkBomb(t testing.TB) []byte {
	items := []item{{Name: "a", Body: strings.Repeat("a", 1<<20)}}
	for i := range 1000 {
		items = append(items, item{Name: "l" + itoa(i), Type: tar.TypeLink, Link: "a"})
	}
	return tarOf(t, items...)
}
