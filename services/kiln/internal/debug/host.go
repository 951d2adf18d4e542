package debug

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/pkg/human"
)

// groupCheck looks for the group whose members may use buildkitd, and whether the caller is
// one of them.
func (o *options) groupCheck(context.Context) []Finding {
	if o.ownStack {
		return ok("buildkitd is of the running kiln up, and needs no group")
	}
	group, err := user.LookupGroup(o.group)
	if err != nil {
		return []Finding{{
			State: Warn, Message: fmt.Sprintf("there is no group %s, so that only root may use buildkitd and its caches", o.group), Evidence: []string{err.Error()},
			Remedy: "sudo groupadd --system " + o.group,
		}}
	}
	if os.Geteuid() == 0 {
		return ok("the group %s is there (%s), and you are root", o.group, group.Gid)
	}
	me, err := user.Current()
	if err != nil {
		return unknown("who you are cannot be found out: %v", err)
	}
	gid, _ := strconv.Atoi(group.Gid) // it is a number on Linux
	mine, err := os.Getgroups()
	if err == nil && slices.Contains(mine, gid) {
		return ok("%s is a member of the group %s", me.Username, o.group)
	}
	ids, err := me.GroupIds()
	if err == nil && slices.Contains(ids, group.Gid) {
		return []Finding{{
			State: Warn, Message: fmt.Sprintf("%s is a member of the group %s, and this session began before", me.Username, o.group),
			Remedy: "newgrp " + o.group + ", or log in again",
		}}
	}
	return []Finding{{
		State: Fail, Message: fmt.Sprintf("%s is no member of the group %s: permission denied is what buildkitd and its caches will say", me.Username, o.group),
		Evidence: []string{"groups: " + strings.Join(ids, " ")}, Remedy: fmt.Sprintf("sudo usermod -aG %s %s, and log in again", o.group, me.Username),
	}}
}

// wantMode is that of the directory of caches: set-group-id, so that what is made there is of
// the group.
const wantMode = fs.ModeDir | fs.ModeSetgid | 0o775

// cacheDirCheck looks at owner, group and mode of the directory of type=local caches, and of
// what is in it.
func (o *options) cacheDirCheck(context.Context) []Finding {
	info, err := os.Stat(o.cacheDir)
	if errors.Is(err, fs.ErrNotExist) {
		return unknown("there is no directory of type=local caches (%s): builds do without", o.cacheDir)
	}
	if err != nil {
		return []Finding{{State: Fail, Message: "the directory of caches cannot be looked at", Evidence: []string{err.Error()}, Remedy: o.directoryRemedy()}}
	}
	gid := -1
	if group, err := user.LookupGroup(o.group); err == nil {
		gid, _ = strconv.Atoi(group.Gid)
	}
	var evidence []string
	st, _ := info.Sys().(*syscall.Stat_t)
	if st != nil && (st.Uid != 0 || gid >= 0 && int(st.Gid) != gid) {
		evidence = append(evidence, fmt.Sprintf("%s is of %s, and should be of root:%s", o.cacheDir, ownerOf(st), o.group))
	}
	if info.Mode() != wantMode {
		evidence = append(evidence, fmt.Sprintf("%s has mode %s, and should have 2775", o.cacheDir, octal(info.Mode())))
	}
	state := Fail
	if len(evidence) == 0 {
		if evidence = o.wrongBelow(gid); len(evidence) == 0 {
			return ok("%s is root:%s, mode 2775", o.cacheDir, o.group)
		}
		state = Warn // who has made it may still write there
	}
	return []Finding{{
		State: state, Message: "the directory of caches has not the owner, group and mode that let the group write there", Evidence: evidence,
		Remedy: o.directoryRemedy(), fix: func() error { return setOwners(o.cacheDir, gid) },
	}}
}

func (o *options) directoryRemedy() string {
	return fmt.Sprintf("sudo chown -R root:%[1]s %[2]s && sudo chmod -R 2775 %[2]s; or kiln debug --fix", o.group, o.cacheDir)
}

// ofCacheManager is the directory there that is the cache manager's alone.
const ofCacheManager = ".kiln"

// wrongBelow are the first directories that the group cannot write to.
func (o *options) wrongBelow(gid int) (evidence []string) {
	const most = 3
	_ = filepath.WalkDir(o.cacheDir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			evidence = append(evidence, err.Error())
		case d.Name() == ofCacheManager:
			return fs.SkipDir
		case path != o.cacheDir && d.IsDir():
			info, err := d.Info()
			if err != nil {
				return nil //nolint:nilerr // It has just gone.
			}
			st, _ := info.Sys().(*syscall.Stat_t)
			if info.Mode().Perm()&0o020 == 0 || st != nil && gid >= 0 && int(st.Gid) != gid {
				evidence = append(evidence, fmt.Sprintf("%s is %s of %s: the group cannot write to it", path, octal(info.Mode()), ownerOf(st)))
			}
		}
		if len(evidence) >= most {
			return fs.SkipAll
		}
		return nil
	})
	return evidence
}

// setOwners gives a directory and all below it the owner, group and modes that they should
// have. Files get no right to be run.
func setOwners(dir string, gid int) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || d.Type()&fs.ModeSymlink != 0:
			return err
		case d.Name() == ofCacheManager:
			return fs.SkipDir
		}
		if err := os.Lchown(path, 0, gid); err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Chmod(path, wantMode)
		}
		return os.Chmod(path, info.Mode()|0o060)
	})
}

func ownerOf(st *syscall.Stat_t) string {
	if st == nil {
		return "?"
	}
	name, group := strconv.Itoa(int(st.Uid)), strconv.Itoa(int(st.Gid))
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	if g, err := user.LookupGroupId(group); err == nil {
		group = g.Name
	}
	return name + ":" + group
}

func octal(mode fs.FileMode) string {
	bits := uint32(mode.Perm())
	if mode&fs.ModeSetgid != 0 {
		bits |= 0o2000
	}
	return fmt.Sprintf("%04o", bits)
}

// Less of a file system than this is little.
const (
	littleShare = 0.10
	littleBytes = 5e9
)

// diskCheck looks at the room where state and caches are.
func (o *options) diskCheck(context.Context) (all []Finding) {
	seen := map[string]bool{}
	for _, dir := range o.stateDirs() {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) != nil || st.Blocks == 0 {
			continue
		}
		id := fmt.Sprint(st.Fsid, st.Blocks)
		if seen[id] {
			continue
		}
		seen[id] = true
		size, free := float64(st.Blocks)*float64(st.Bsize), float64(st.Bavail)*float64(st.Bsize)
		f := Finding{State: OK, Message: fmt.Sprintf("%s of %s are free at %s", human.Size(int64(free)), human.Size(int64(size)), dir)}
		inodes := 1.0
		if st.Files > 0 {
			inodes = float64(st.Ffree) / float64(st.Files)
		}
		switch {
		case free/size < littleShare/5 || inodes < littleShare/5:
			f.State = Fail
		case free/size < littleShare && free < 10*littleBytes || free < littleBytes && size > 2*littleBytes || inodes < littleShare:
			f.State = Warn
		}
		if f.State != OK {
			f.Evidence = []string{fmt.Sprintf("%.1f %% of the bytes and %.1f %% of the inodes are free", 100*free/size, 100*inodes)}
			f.Remedy = "see what takes the room with `kiln cache du` and `kiln janitor usage`, and free it with `kiln cache prune` and `kiln janitor run --force`"
		}
		all = append(all, f)
	}
	if len(all) == 0 {
		return unknown("no directory of state is on this host")
	}
	return all
}

func (o *options) stateDirs() (there []string) {
	for _, dir := range []string{o.daemonRoot, o.cacheDir, "/var/lib/buildkit", "/var/lib/registry", "/var/lib/kiln"} {
		if dir == "" {
			continue
		}
		if _, err := os.Stat(dir); err == nil {
			there = append(there, dir)
		}
	}
	return there
}

// cgroupCheck looks for the controllers that runc wants.
func (o *options) cgroupCheck(context.Context) []Finding {
	missing := func(evidence string) []Finding {
		return []Finding{{
			State: Fail, Message: "cgroups are not mounted as runc wants them: steps of builds cannot start", Evidence: []string{evidence},
			Remedy: "mount -t cgroup2 none /sys/fs/cgroup, or start the host with systemd; in a container, give it --cgroupns=host or --privileged",
		}}
	}
	if text, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		controllers := strings.Fields(string(text))
		for _, want := range []string{"memory", "pids"} {
			if !slices.Contains(controllers, want) {
				return missing("cgroup v2 has the controllers " + strings.Join(controllers, " "))
			}
		}
		return ok("cgroup v2 with %s", strings.Join(controllers, " "))
	}
	for _, want := range []string{"memory", "pids", "devices"} {
		if _, err := os.Stat("/sys/fs/cgroup/" + want + "/tasks"); err != nil {
			return missing(err.Error())
		}
	}
	return ok("cgroup v1")
}

// overlayCheck looks whether the kernel has overlayfs, which the snapshotter is.
func (o *options) overlayCheck(context.Context) []Finding {
	text, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return unknown("%v", err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[len(fields)-1] == "overlay" {
			return ok("the kernel has overlayfs")
		}
	}
	return []Finding{{
		State: Fail, Message: "the kernel has no overlayfs: buildkitd falls back to copying each layer", Evidence: []string{"/proc/filesystems has no overlay"},
		Remedy: "sudo modprobe overlay",
	}}
}

// runcCheck looks for runc, and that it starts.
func (o *options) runcCheck(ctx context.Context) []Finding {
	path := ""
	for _, name := range []string{"buildkit-runc", "runc"} {
		for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/local/sbin", "/usr/sbin", "/sbin") {
			if info, err := os.Stat(filepath.Join(dir, name)); path == "" && err == nil && info.Mode()&0o111 != 0 {
				path = filepath.Join(dir, name)
			}
		}
	}
	if path == "" {
		return []Finding{{
			State: Fail, Message: "runc, which runs the steps of builds, is not installed", Evidence: []string{"neither buildkit-runc nor runc is in " + os.Getenv("PATH") + " or sbin"},
			Remedy: "sudo apt-get install runc, or the package of your distribution",
		}}
	}
	out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	if err != nil {
		return []Finding{{State: Fail, Message: path + " does not start", Evidence: []string{err.Error(), string(out)}, Remedy: "install runc anew"}}
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return ok("%s (%s)", first, path)
}

// emulatorCheck looks which other platforms steps can run for.
func (o *options) emulatorCheck(context.Context) []Finding {
	entries, err := filepath.Glob("/proc/sys/fs/binfmt_misc/qemu-*")
	var names []string
	for _, entry := range entries {
		if enabled(entry) {
			names = append(names, strings.TrimPrefix(filepath.Base(entry), "qemu-"))
		}
	}
	own, _ := exec.LookPath("buildkit-qemu-aarch64")
	if err != nil || len(names) == 0 && own == "" {
		return []Finding{{
			State: Unknown, Message: "no emulator is registered: RUN steps run for this host's platform only (COPY and cross-compiling go on for all)",
			Evidence: []string{"/proc/sys/fs/binfmt_misc has no enabled qemu-*, and buildkit-qemu-* is not in PATH"},
			Remedy:   "sudo apt-get install qemu-user-static && sudo systemctl restart systemd-binfmt",
		}}
	}
	return ok("emulators: %s", strings.Join(append(names, own), " "))
}

func enabled(entry string) bool {
	file, err := os.Open(entry)
	if err != nil {
		return false
	}
	defer func() { _ = file.Close() }() // It was only read.
	scanner := bufio.NewScanner(file)
	return scanner.Scan() && scanner.Text() == "enabled"
}
