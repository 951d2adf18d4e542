package profile

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Local is the name of the profile of a `kiln up` with the default data directory.
const Local = "local"

// RunDir is the directory of the profiles of running stacks: $KILN_RUN_DIR, else
// /run/kiln.
func RunDir() string {
	return filepath.Join(cmp.Or(os.Getenv("KILN_RUN_DIR"), "/run/kiln"), "profiles")
}

// systemDir is the directory of the administrator's configuration.
const systemDir = "/etc/kiln"

// userDir is the directory of the user's configuration. Empty: there is none.
func userDir() string {
	dir, err := os.UserConfigDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "kiln")
}

// dirs are the directories that names are looked up in, first match first.
func dirs() []string {
	all := []string{RunDir(), filepath.Join(systemDir, "profiles")}
	if dir := userDir(); dir != "" {
		all = slices.Insert(all, 0, filepath.Join(dir, "profiles"))
	}
	return all
}

// Select returns the profile of a command, in this order: the one that name names
// (--profile, else KILN_PROFILE), the choice of `kiln profile use`, the running
// `kiln up` of this user, /etc/kiln/profile.yaml, and the built-in defaults.
func Select(name string) (*Profile, error) {
	if name = cmp.Or(name, os.Getenv("KILN_PROFILE"), chosen()); name != "" {
		return byName(name)
	}
	running := Running()
	if p := slices.IndexFunc(running, func(p *Profile) bool { return p.Name == Local }); p >= 0 {
		return running[p], nil
	}
	switch len(running) {
	case 0:
	case 1:
		return running[0], nil
	default:
		return nil, fault.New(fault.FailedPrecondition, "", fmt.Sprintf("%d stacks of kiln up run here: %s", len(running), strings.Join(namesOf(running), ", ")),
			"choose one with --profile NAME, KILN_PROFILE or `kiln profile use NAME`")
	}
	system := filepath.Join(systemDir, "profile"+extension)
	if _, err := os.Stat(system); err == nil {
		return Load(system)
	}
	return Defaults(), nil
}

// byName returns the profile of a name, or of the file that name is the path of.
func byName(name string) (*Profile, error) {
	if strings.Contains(name, "/") {
		return Load(name)
	}
	if name == Defaults().Name {
		return Defaults(), nil
	}
	for _, dir := range dirs() {
		path := filepath.Join(dir, name+extension)
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return Load(path)
		}
	}
	known := namesOf(List())
	remedy := "there are none; `kiln up` writes one, or write " + filepath.Join(dirs()[0], name+extension)
	if len(known) > 0 {
		remedy = "use one of " + strings.Join(known, ", ")
	}
	return nil, fault.New(fault.NotFound, "", fmt.Sprintf("no profile is named %q", name), remedy)
}

func namesOf(all []*Profile) []string {
	var names []string
	for _, p := range all {
		names = append(names, p.Name)
	}
	return names
}

// List returns all profiles that can be read, in order of their directories. A
// name that an earlier directory has is left out.
func List() []*Profile {
	var all []*Profile
	for _, dir := range dirs() {
		for _, p := range in(dir) {
			if !slices.Contains(namesOf(all), p.Name) {
				all = append(all, p)
			}
		}
	}
	if p, err := Load(filepath.Join(systemDir, "profile"+extension)); err == nil {
		all = append(all, p)
	}
	return all
}

// in returns the readable profiles of a directory, by name.
func in(dir string) []*Profile {
	paths, _ := filepath.Glob(filepath.Join(dir, "*"+extension)) // The pattern is right.
	var all []*Profile
	for _, path := range paths {
		if p, err := Load(path); err == nil {
			all = append(all, p)
		}
	}
	return all
}

// Running returns the profiles of the running `kiln up` that this user started.
func Running() []*Profile {
	return slices.DeleteFunc(in(RunDir()), func(p *Profile) bool { return !p.IsRunning() || !mine(p.Path) })
}

// IsRunning reports whether the `kiln up` that wrote the profile still runs.
func (p *Profile) IsRunning() bool { return p.Process != nil && p.Process.alive() }

// chosen is the name that `kiln profile use` has written. Empty: none.
func chosen() string {
	if userDir() == "" {
		return ""
	}
	text, err := os.ReadFile(choiceFile())
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func choiceFile() string { return filepath.Join(userDir(), "profile-in-use") }

// Choose makes a profile the user's default. An empty name takes the choice back.
func Choose(name string) error {
	if userDir() == "" {
		return fault.New(fault.FailedPrecondition, "", "no home directory to keep the choice in", "set HOME or XDG_CONFIG_HOME, or use KILN_PROFILE")
	}
	if name == "" {
		if err := os.Remove(choiceFile()); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if _, err := byName(name); err != nil {
		return err
	}
	if err := os.MkdirAll(userDir(), 0o700); err != nil {
		return err
	}
	return os.WriteFile(choiceFile(), []byte(name+"\n"), 0o600)
}
