package disk

import "testing"

func TestPerFile_IsTheShareOfAnInode(t *testing.T) {
	const gib = 1 << 30
	for _, test := range []struct {
		bytes, files uint64
		want         int64
	}{
		{100 * gib, 100 * gib / 16384, 16 << 10}, // ext4 as it is made by default
		{gib, 1 << 32, 4 << 10},                  // XFS and others that make them as they are needed
		{100 * gib, 1000, 64 << 10},              // made for large files: a small one does not cost the whole quota
	} {
		if got := perFile(test.bytes, test.files); got != test.want {
			t.Errorf("%d bytes and %d inodes: %d, want %d", test.bytes, test.files, got, test.want)
		}
	}
	if got := PerFile(t.TempDir()); got < leastPerFile || got > mostPerFile {
		t.Errorf("of this disk: %d", got)
	}
	if got := PerFile("/does/not/exist"); got != leastPerFile {
		t.Errorf("of none: %d", got)
	}
}
