package local

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

func ownerOf(t *testing.T, path string) (mode fs.FileMode, uid, gid uint32) {
	t.Helper()
	info := got(os.Lstat(path))(t)
	of, _ := info.Sys().(*syscall.Stat_t)
	return info.Mode(), of.Uid, of.Gid
}

// Whatever rewrites index.json, those who could write it can write it afterwards.
func TestRewrittenIndex_KeepsModeOwnerAndGroup(t *testing.T) {
	for name, rewrite := range map[string]func(l *layout, d *Directory) error{
		"remove": func(_ *layout, d *Directory) error {
			return d.Remove(t.Context(), listed(t, d, "a"), 0, func(string, int64) {})
		},
		"shrink": func(_ *layout, d *Directory) error {
			_, _, err := d.Shrink(t.Context(), listed(t, d, "b")[0], 1, 0)
			return err
		},
		"repair": func(l *layout, d *Directory) error {
			blobs := l.blobs(t)
			for blob := range blobs {
				if err := os.Remove(l.path(blob)); err != nil {
					return err
				}
				break
			}
			return d.Repair(t.Context(), false, func(cache.Defect) {})
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			must(t, l.export("a", nil, "base"))
			must(t, l.export("b", nil, "other", "upon it"))
			index := filepath.Join(l.dir, indexFile)
			must(t, os.Chown(index, 1234, 4321))
			must(t, os.Chmod(index, 0o664))
			before := got(os.ReadFile(index))(t)
			must(t, rewrite(l, l.open(time.Hour)))
			if after := got(os.ReadFile(index))(t); string(after) == string(before) {
				t.Fatal("the index was not rewritten: the test shows nothing")
			}
			if mode, uid, gid := ownerOf(t, index); mode != 0o664 || uid != 1234 || gid != 4321 {
				t.Errorf("it is %v of %d:%d now", mode, uid, gid)
			}
		})
	}
}

// What the cache manager adds to a shared directory is for the directory's group.
func TestOwnFiles_HaveTheGroupOfTheDirectory(t *testing.T) {
	l := newLayout(t)
	must(t, l.export("a", nil, "base"))
	must(t, l.export("a", nil, "new"))
	must(t, os.Chown(l.dir, -1, 4321))
	must(t, os.Chmod(l.dir, 0o775|fs.ModeSetgid))
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	d := l.open(0)
	got(d.Lock(t.Context()))(t)
	got(d.Acquire(t.Context(), Lease{Tag: "a", Mode: Import, TTL: time.Minute}))(t)
	must(t, d.Sweep(t.Context(), true))
	must(t, d.Close())
	must(t, filepath.WalkDir(filepath.Join(l.dir, ownDir), func(path string, entry fs.DirEntry, err error) error {
		mode, _, gid := ownerOf(t, path)
		want := fs.FileMode(ownMode)
		if entry.IsDir() {
			want = ownDirMode | fs.ModeDir | fs.ModeSetgid
		}
		if gid != 4321 || mode != want && !strings.Contains(path, "/trash/") {
			t.Errorf("%s is %v of group %d", path, mode, gid)
		}
		return err
	}))
}

// A directory that is gone is not made anew: the modes that exports need are not known.
func TestLease_DoesNotMakeTheDirectory(t *testing.T) {
	l := newLayout(t)
	must(t, os.Remove(l.dir))
	d := l.open(0)
	lease := got(d.Acquire(t.Context(), Lease{Tag: "a", Mode: Export, TTL: time.Minute}))(t)
	if _, err := os.Stat(l.dir); !os.IsNotExist(err) {
		t.Fatalf("the directory was made: %v", err)
	}
	got(d.Renew(t.Context(), lease.ID, time.Hour))(t)
	must(t, l.export("a", nil, "leased"))
	must(t, d.Remove(t.Context(), listed(t, d, "a"), 0, func(string, int64) { t.Error("a leased tag went") }))
	must(t, l.export("b", nil, "base"))
	must(t, l.export("b", nil, "new")) // "base" is an orphan, as young as the lease
	must(t, d.Sweep(t.Context(), true))
	if !l.has(t, "base") {
		t.Error("a blob that was written under an export lease went")
	}
	other := l.open(0) // of another process
	if leases := got(other.Leases(t.Context()))(t); leases["a"] != lease.ID {
		t.Errorf("the lease is not stored now that the directory is there: %v", leases)
	}
	if known := got(d.Release(t.Context(), lease.ID))(t); !known {
		t.Error("the lease is not known")
	}
}

// Without root's rights, the owner cannot be kept: the group that shares the directory gets the
// owner's rights. A file of no group that shares it is left as it is, and the error says why.
func TestRewrittenIndex_ByAnotherUserOfTheGroup(t *testing.T) {
	const dir = "KILN_TEST_SHARED_DIRECTORY"
	if path := os.Getenv(dir); path != "" {
		d := New(Options{Path: path, Grace: time.Hour})
		err := d.Remove(t.Context(), listed(t, d, "a"), 0, func(string, int64) {})
		if err != nil && fault.KindOf(err) != fault.FailedPrecondition {
			t.Fatal("another error: ", err)
		}
		must(t, err)
		return
	}
	for name, c := range map[string]struct {
		index  int // group
		groups []uint32
		ok     bool
	}{"shared group": {4321, nil, true}, "private group": {9999, nil, false}, "another group of both": {9999, []uint32{9999}, false}} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			for parent := l.dir; strings.HasPrefix(parent, os.TempDir()+"/"); parent = filepath.Dir(parent) {
				must(t, os.Chmod(parent, 0o755))
			}
			must(t, l.export("a", nil, "base"))
			must(t, l.export("b", nil, "other"))
			must(t, os.Chown(l.dir, 1234, 4321))
			must(t, os.Chmod(l.dir, 0o775|fs.ModeSetgid))
			index := filepath.Join(l.dir, indexFile)
			must(t, os.Chown(index, 1234, c.index))
			binary := filepath.Join(t.TempDir(), "test")
			must(t, os.Chmod(filepath.Dir(binary), 0o755))
			must(t, os.WriteFile(binary, got(os.ReadFile(os.Args[0]))(t), 0o755))
			cmd := exec.CommandContext(t.Context(), binary, "-test.run=^TestRewrittenIndex_ByAnotherUserOfTheGroup$")
			cmd.Env, cmd.Dir = append(os.Environ(), dir+"="+l.dir), l.dir
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 5555, Gid: 4321, Groups: c.groups}}
			out, err := cmd.CombinedOutput()
			mode, uid, gid := ownerOf(t, index)
			switch {
			case c.ok && (err != nil || mode != 0o664 || uid != 5555 || gid != 4321):
				t.Errorf("%v, %v of %d:%d\n%s", err, mode, uid, gid, out)
			case !c.ok && (err == nil || mode != 0o644 || uid != 1234 || !strings.Contains(string(out), "belongs to user 1234")):
				t.Errorf("%v, %v of %d:%d\n%s", err, mode, uid, gid, out)
			}
		})
	}
}
