package debug

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/kilnbuild/kiln/pkg/buildkitd"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// socketCheck looks at the socket of buildkitd: that it is there, and that its group may use it.
func (o *options) socketCheck(context.Context) []Finding {
	path, local := strings.CutPrefix(o.daemon, "unix://")
	if !local {
		return unknown("buildkitd is at %s, on another host or by TCP", o.daemon)
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []Finding{{
			State: Fail, Message: "buildkitd's socket is not there: the daemon is down, or listens elsewhere", Evidence: []string{err.Error()},
			Remedy: "sudo systemctl start buildkit, and see journalctl -u buildkit; or name it with --daemon",
		}}
	case errors.Is(err, fs.ErrPermission):
		return []Finding{{
			State: Fail, Message: "you may not get to buildkitd's socket", Evidence: []string{err.Error()},
			Remedy: fmt.Sprintf("sudo usermod -aG %s $USER, and log in again", o.group),
		}}
	case err != nil:
		return unknown("%v", err)
	}
	st, _ := info.Sys().(*syscall.Stat_t)
	groupName := strings.TrimPrefix(ownerOf(st), strings.SplitN(ownerOf(st), ":", 2)[0]+":")
	fix := fmt.Sprintf("sudo chgrp %[1]s %[2]s && sudo chmod 660 %[2]s; to keep it so, start buildkitd with --group %[1]s", o.group, path)
	mend := func() error {
		gid, err := gidOf(o.group)
		if err != nil {
			return err
		}
		return errors.Join(os.Chown(path, 0, gid), os.Chmod(path, 0o660))
	}
	switch {
	case o.ownStack && info.Mode().Perm()&0o002 == 0:
		return ok("%s is of the running kiln up (%s of %s)", path, octal(info.Mode()), ownerOf(st))
	case info.Mode().Perm()&0o002 != 0:
		return []Finding{{
			State: Fail, Message: "all users of this host may use buildkitd's socket: whoever reaches it is as good as root",
			Evidence: []string{fmt.Sprintf("%s is %s of %s", path, octal(info.Mode()), ownerOf(st))}, Remedy: fix, fix: mend,
		}}
	case groupName != o.group || info.Mode().Perm()&0o060 != 0o060:
		return []Finding{{
			State: Warn, Message: fmt.Sprintf("the group %s may not use buildkitd's socket", o.group),
			Evidence: []string{fmt.Sprintf("%s is %s of %s", path, octal(info.Mode()), ownerOf(st))}, Remedy: fix, fix: mend,
		}}
	}
	return ok("%s is %s of %s", path, octal(info.Mode()), ownerOf(st))
}

// oldest is the first version of BuildKit that Kiln is held to.
const oldestMinor = 15

// daemonCheck asks buildkitd itself: that it answers, its version and its workers.
func (o *options) daemonCheck(ctx context.Context) []Finding {
	c, err := buildkitd.Client(ctx, buildkitd.Options{Daemon: &configv1.DaemonConfig{Address: o.daemon}})
	if err != nil {
		return unknown("%v", err)
	}
	defer func() { _ = c.Close() }() // nothing is left to lose
	workers, err := c.ListWorkers(ctx)
	if err != nil {
		f := Finding{State: Fail, Message: "buildkitd does not answer", Evidence: []string{err.Error()}, Remedy: "sudo systemctl restart buildkit, and see journalctl -u buildkit"}
		if strings.Contains(err.Error(), "permission denied") {
			f.Message, f.Remedy = "you may not use buildkitd", fmt.Sprintf("sudo usermod -aG %s $USER, and log in again", o.group)
		}
		return []Finding{f}
	}
	var all []Finding
	for _, w := range workers {
		label := func(name string) string { return w.Labels["org.mobyproject.buildkit.worker."+name] }
		f := Finding{State: OK, Message: fmt.Sprintf("buildkitd %s: %s worker, %s, %d platforms", w.BuildkitVersion.Version, label("executor"), label("snapshotter"), len(w.Platforms))}
		switch {
		case tooOld(w.BuildkitVersion.Version):
			f.State, f.Evidence = Warn, []string{"its version is " + w.BuildkitVersion.Version}
			f.Remedy = fmt.Sprintf("bring buildkitd to v0.%d or later", oldestMinor)
		case label("snapshotter") != "overlayfs" && label("snapshotter") != "":
			f.State, f.Evidence = Warn, []string{"its snapshotter is " + label("snapshotter") + ": each layer is copied whole"}
			f.Remedy = "set snapshotter = \"overlayfs\" in buildkitd.toml, and keep its root on a file system that overlayfs stands on"
		}
		all = append(all, f)
	}
	if len(all) == 0 {
		return []Finding{{State: Fail, Message: "buildkitd has no worker", Remedy: "enable [worker.oci] in buildkitd.toml"}}
	}
	return all
}

// tooOld reports whether a version is one that Kiln is not held to. What is no version is not.
func tooOld(version string) bool {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) < 2 {
		return false
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	return err1 == nil && err2 == nil && major == 0 && minor < oldestMinor
}
