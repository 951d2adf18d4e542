package up

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// runcTimeout bounds one call of runc.
const runcTimeout = 15 * time.Second

// removeLeftovers removes what a buildkitd that was killed has left: containers
// that run on, mounts, and temporary files. buildkitd must not be running.
func removeLeftovers(ctx context.Context, p paths, runc string) error {
	if err := removeContainers(ctx, p, runc); err != nil {
		return fmt.Errorf("removing containers of builds: %w", err)
	}
	// Network namespaces stay: buildkitd gives back their addresses when it starts.
	if err := unmountBelow(p.namespaces(), p.buildkit(), p.tmp()); err != nil {
		return fmt.Errorf("unmounting what builds left: %w", err)
	}
	entries, err := os.ReadDir(p.tmp())
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(p.tmp(), entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// removeContainers kills and removes the containers whose bundles are in the
// data directory: runc's list is the whole machine's.
func removeContainers(ctx context.Context, p paths, runc string) error {
	out, err := runRunc(ctx, runc, "list", "--format", "json")
	if err != nil {
		return err
	}
	var containers []struct {
		ID     string `json:"id"`
		Bundle string `json:"bundle"`
	}
	if err := json.Unmarshal(out, &containers); err != nil {
		return fmt.Errorf("runc list: %w", err)
	}
	var failures []error
	for _, container := range containers {
		if !below(container.Bundle, p.buildkit()) {
			continue
		}
		if _, err := runRunc(ctx, runc, "delete", "--force", container.ID); err != nil {
			failures = append(failures, err)
		}
	}
	return errors.Join(failures...)
}

func runRunc(ctx context.Context, runc string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, runcTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, runc, args...)
	cmd.WaitDelay = time.Second // What it may have started must not hold us by its output.
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil, fmt.Errorf("runc %s: %w: %s", args[0], err, strings.TrimSpace(string(exit.Stderr)))
	}
	return out, err
}

// removeNamespaces removes the network namespaces of steps that a buildkitd which
// was killed has left, and what the CNI plugins know of them.
func removeNamespaces(p paths) error {
	err := errors.Join(unmountBelow("", p.namespaces()), os.RemoveAll(p.namespaces()), os.RemoveAll(p.ipam()))
	results, globErr := filepath.Glob(filepath.Join(cniResults, bridgeName(p.root)+"-*"))
	err = errors.Join(err, globErr)
	for _, result := range results {
		err = errors.Join(err, os.Remove(result))
	}
	return err
}

// unmountBelow unmounts all that is mounted below the directories, the newest
// first, but for what is below keep. The directories themselves may be mount points:
// somebody's choice.
func unmountBelow(keep string, dirs ...string) error {
	points, err := mountPoints("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var failures []error
	for _, point := range slices.Backward(points) {
		if keep != "" && below(point, keep) || !slices.ContainsFunc(dirs, func(dir string) bool { return below(point, dir) }) {
			continue
		}
		// Detached, so that a process that still looks inside does not keep it.
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			failures = append(failures, fmt.Errorf("%s: %w", point, err))
		}
	}
	return errors.Join(failures...)
}

// mountPoints reads the mount points of a mountinfo table, in its order.
func mountPoints(table string) ([]string, error) {
	file, err := os.Open(table)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	// The kernel writes blanks and backslashes in octal.
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var points []string
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20) // An overlay of many layers makes a long line.
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 {
			points = append(points, unescape.Replace(fields[4]))
		}
	}
	return points, lines.Err()
}

func below(path, dir string) bool { return strings.HasPrefix(path, dir+string(filepath.Separator)) }
