package profile

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"go.yaml.in/yaml/v3"

	"github.com/kilnbuild/kiln/services/kiln/internal/wholefile"
)

// Process names a process so that another one with its number later is not taken
// for it.
type Process struct {
	PID int `yaml:"pid"`
	// Started is the start time of the process in clock ticks since boot.
	Started uint64 `yaml:"started"`
}

// Self returns the process of the caller.
func Self() *Process {
	started, _ := startOf(os.Getpid()) // Without /proc there is nothing to compare.
	return &Process{PID: os.Getpid(), Started: started}
}

func (p *Process) alive() bool {
	started, err := startOf(p.PID)
	return err == nil && started == p.Started
}

// startOf reads the start time of a process, field 22 of /proc/PID/stat.
func startOf(pid int) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, field 2, is in parentheses and may hold spaces.
	_, rest, _ := strings.Cut(string(text[max(0, strings.LastIndexByte(string(text), ')')):]), " ")
	const afterName = 22 - 3
	fields := strings.Fields(rest)
	if len(fields) <= afterName {
		return 0, errors.New("the process table has an unknown form")
	}
	return strconv.ParseUint(fields[afterName], 10, 64)
}

// Caller returns the user and the group on whose behalf the process runs: those of
// the user who called sudo, else its own.
func Caller() (uid, gid int) {
	uid, gid = os.Geteuid(), os.Getegid()
	if uid != 0 {
		return uid, gid
	}
	sudoUID, err := strconv.Atoi(os.Getenv("SUDO_UID"))
	sudoGID, gidErr := strconv.Atoi(os.Getenv("SUDO_GID"))
	if err != nil || gidErr != nil || sudoUID < 0 || sudoGID < 0 {
		return uid, gid
	}
	return sudoUID, sudoGID
}

// mine reports whether this user, by sudo or without, owns a file.
func mine(path string) bool {
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	uid, _ := Caller()
	return ok && (int(st.Uid) == uid || int(st.Uid) == os.Geteuid())
}

var notOfName = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

// NameFor returns the name of the profile of a data directory: "local" for the
// default one, else its last element and a few digits of a hash of its path.
func NameFor(dataDir, defaultDir string) string {
	if dataDir == defaultDir {
		return Local
	}
	sum := sha256.Sum256([]byte(dataDir))
	base := cmp.Or(strings.Trim(notOfName.ReplaceAllString(filepath.Base(dataDir), "-"), "-."), "kiln")
	return base + "-" + hex.EncodeToString(sum[:3])
}

// Publish writes the profile of a running stack to its data directory and to RunDir,
// where the commands of the same user find it. A profile that names secrets can be
// read by that user only. Withdraw removes it.
func (p *Profile) Publish() error {
	text, err := yaml.Marshal(p)
	if err != nil {
		return err
	}
	text = append([]byte("# Written by kiln up, which removes it when it ends. See kiln profile --help.\n"), text...)
	if err := os.MkdirAll(RunDir(), 0o755); err != nil { //nolint:gosec // Other users may list what runs.
		return err
	}
	uid, gid := Caller()
	mode := os.FileMode(0o644)
	if p.Secret() {
		mode = 0o600
	}
	p.Path = p.published()
	// Anew, so that neither owner nor mode of an earlier one stay.
	if err := os.Remove(p.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := wholefile.Replace(p.Path, text, mode); err != nil {
		return err
	}
	if err := os.Chown(p.Path, uid, gid); err != nil {
		return err
	}
	return wholefile.Replace(filepath.Join(p.DataDir, "profile"+extension), text, 0o600)
}

func (p *Profile) published() string { return filepath.Join(RunDir(), p.Name+extension) }

// Withdraw removes the published profile, unless another process has replaced it.
func (p *Profile) Withdraw() error {
	now, err := Load(p.published())
	if err != nil || now.Process == nil || p.Process == nil || *now.Process != *p.Process {
		return nil //nolint:nilerr // There is none of ours.
	}
	if err := os.Remove(p.published()); err != nil {
		return err
	}
	for _, dir := range []string{RunDir(), filepath.Dir(RunDir())} {
		_ = os.Remove(dir) // It goes when it is empty.
	}
	return nil
}
