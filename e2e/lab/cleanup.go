package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// runcState is where runc keeps the state of its containers when run as root.
const runcState = "/run/runc"

// Containers returns the ids of the runc containers whose files are below dir.
func Containers(dir string) ([]string, error) {
	states, err := filepath.Glob(filepath.Join(runcState, "*", "state.json"))
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	var ids []string
	for _, path := range states {
		data, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // Ended meanwhile.
		}
		if err != nil {
			return nil, fmt.Errorf("lab: %w", err)
		}
		if bytes.Contains(data, []byte(dir+"/")) {
			ids = append(ids, filepath.Base(filepath.Dir(path)))
		}
	}
	return ids, nil
}

// Running returns those of Containers whose first process lives. (runc leaves the
// state of a container behind when it is killed while it makes it.)
func Running(dir string) ([]string, error) {
	all, err := Containers(dir)
	if err != nil {
		return nil, err
	}
	var alive []string
	for _, id := range all {
		data, err := os.ReadFile(filepath.Join(runcState, id, "state.json"))
		if errors.Is(err, os.ErrNotExist) {
			continue // Ended meanwhile.
		}
		var state struct {
			Pid   int    `json:"init_process_pid"`
			Start uint64 `json:"init_process_start"`
		}
		if err == nil {
			err = json.Unmarshal(data, &state)
		}
		if err != nil {
			return nil, fmt.Errorf("lab: %w", err)
		}
		// Field 22 of stat(5) is when it started: a pid may be another's by now.
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", state.Pid))
		_, rest, _ := bytes.Cut(stat, []byte(") "))
		fields := bytes.Fields(rest)
		if err == nil && len(fields) > 19 && string(fields[0]) != "Z" && string(fields[19]) == strconv.FormatUint(state.Start, 10) {
			alive = append(alive, id)
		}
	}
	return alive, nil
}

// Mounts returns the mount points at and below dir, the deepest last.
func Mounts(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	defer func() { _ = f.Close() }()
	var points []string
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 5 {
			continue
		}
		if point := unescape.Replace(fields[4]); point == dir || strings.HasPrefix(point, dir+"/") {
			points = append(points, point)
		}
	}
	return points, nil
}

// Clean removes what a killed buildkitd leaves behind: the containers, with their
// processes, and the mounts below dir.
func Clean(ctx context.Context, dir string) error {
	var errs []error
	ids, err := Containers(dir)
	errs = append(errs, err)
	for _, id := range ids {
		runc, err := lookRunc()
		if err != nil {
			return err
		}
		out, err := exec.CommandContext(ctx, runc, "delete", "--force", id).CombinedOutput()
		if err != nil {
			errs = append(errs, fmt.Errorf("lab: runc delete %s: %w: %s", id, err, bytes.TrimSpace(out)))
		}
	}
	points, err := Mounts(dir)
	errs = append(errs, err)
	slices.Reverse(points)
	for _, point := range points {
		if err := syscall.Unmount(point, syscall.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("lab: unmounting %s: %w", point, err))
		}
	}
	return errors.Join(errs...)
}

// lookRunc finds runc, which distributions put in sbin.
func lookRunc() (string, error) {
	for _, name := range []string{"runc", "/usr/local/sbin/runc", "/usr/sbin/runc", "/sbin/runc"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("lab: no runc on this machine: run `make tools`, or install the package runc")
}

// removeAll removes a directory, but never what is mounted in it.
func removeAll(dir string) error {
	points, err := Mounts(dir)
	if err != nil {
		return err
	}
	if len(points) > 0 {
		return fmt.Errorf("lab: still mounted: %s", strings.Join(points, ", "))
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}
