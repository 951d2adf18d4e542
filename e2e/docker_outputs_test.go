package e2e_test

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

// exitCodeOf is that of a command that Exec has run.
func exitCodeOf(err error) int {
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		return failed.ExitCode()
	}
	return 0
}

func metadataKeys(t *testing.T, path string) ([]string, map[string]any) {
	t.Helper()
	var all map[string]any
	if err := json.Unmarshal(labtest.Must(os.ReadFile(path))(t), &all); err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(maps.Keys(all)), all
}

// What a push leaves in --metadata-file and --iidfile has the same keys and the same
// image as with buildx, also for several platforms and with other attestations.
func TestDockerOutputs_MetadataAndIDAreThoseOfBuildx(t *testing.T) {
	s := sharedStack(t)
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /x\n"})
	c := newClients(t, s, dir)
	for name, args := range map[string][]string{
		"plain": nil, "no-attestations": {"--provenance=false"}, "max": {"--provenance=mode=max"}, "platforms": {"--platform", "linux/amd64,linux/arm64"},
	} {
		t.Run(name, func(t *testing.T) {
			out := t.TempDir()
			at := func(client string) []string {
				return append([]string{
					"build", "--push", "-t", s.ref("metadata-" + name), "--metadata-file", filepath.Join(out, client+".json"), "--iidfile", filepath.Join(out, client+".iid"), ".",
				}, args...)
			}
			labtest.Must(c.kiln(t, "", at("kiln")...))(t)
			labtest.Must(c.buildx(t, "", at("buildx")...))(t)
			keys, all := metadataKeys(t, filepath.Join(out, "kiln.json"))
			want, theirs := metadataKeys(t, filepath.Join(out, "buildx.json"))
			if !slices.Equal(keys, want) {
				t.Errorf("keys %v, buildx has %v", keys, want)
			}
			for _, key := range []string{"containerimage.config.digest", "image.name"} {
				if all[key] != theirs[key] {
					t.Errorf("%s is %v, buildx has %v", key, all[key], theirs[key])
				}
			}
			id, theirID := labtest.Must(os.ReadFile(filepath.Join(out, "kiln.iid")))(t), labtest.Must(os.ReadFile(filepath.Join(out, "buildx.iid")))(t)
			// Attestations tell when a build was: with them, the index is another one each time.
			if name == "no-attestations" && string(id) != string(theirID) || len(id) != len(theirID) {
				t.Errorf("ID %q, buildx has %q", id, theirID)
			}
			quiet := labtest.Must(c.kiln(t, "", append(at("quiet"), "--quiet")...))(t)
			if quiet.Stderr != "" || strings.TrimSpace(quiet.Stdout) != string(labtest.Must(os.ReadFile(filepath.Join(out, "quiet.iid")))(t)) {
				t.Errorf("--quiet wrote %q and %q", quiet.Stdout, quiet.Stderr)
			}
		})
	}
}

// Every kind of --output gives what it gives with buildx: to a directory, a file,
// standard output and a registry, several at once.
func TestDockerOutputs_GoWhereTheyGoWithBuildx(t *testing.T) {
	s := sharedStack(t)
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /x\nCOPY Dockerfile /d/y\n"})
	c := newClients(t, s, dir)
	list := func(archive string) string {
		return labtest.Must(lab.Exec(labtest.Context(t, time.Minute), lab.Command{Path: "/usr/bin/env", Args: []string{"tar", "-t"}, Stdin: archive}))(t).Stdout
	}
	for _, output := range []string{"-", "type=tar", "type=oci", "type=oci,dest=-", "type=docker,dest=-"} {
		args := []string{"build", "-t", "web:1", "--provenance=false", "-o", output, "."}
		kiln, buildx := labtest.Must(c.kiln(t, "", args...))(t), labtest.Must(c.buildx(t, "", args...))(t)
		if list(kiln.Stdout) != list(buildx.Stdout) || kiln.Stdout == "" {
			t.Errorf("-o %s: %s\nbuildx: %s", output, list(kiln.Stdout), list(buildx.Stdout))
		}
	}
	out := t.TempDir()
	at := func(client string) []string {
		base := filepath.Join(out, client)
		return []string{
			"build", "-t", s.ref("outputs-" + client), "--provenance=false", "-o", "type=local,dest=" + base, "-o", "type=tar,dest=" + base + "/new/tar.tar",
			"-o", "type=oci,dest=" + base + ".oci,tar=false", "-o", "type=docker,dest=" + base + ".docker.tar", "-o", "type=registry", ".",
		}
	}
	labtest.Must(c.kiln(t, "", at("kiln")...))(t)
	labtest.Must(c.buildx(t, "", at("buildx")...))(t)
	for _, file := range []string{"/x", "/d/y", "/new/tar.tar", ".oci/index.json", ".docker.tar"} {
		if _, err := os.Stat(filepath.Join(out, "kiln"+file)); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(out, "buildx"+file)); err != nil {
			t.Errorf("buildx does not do that: %v", err)
		}
	}
	mine, theirs := labtest.Must(image.Digest(t.Context(), s.ref("outputs-kiln")))(t), labtest.Must(image.Digest(t.Context(), s.ref("outputs-buildx")))(t)
	if mine != theirs {
		t.Errorf("pushed %s, buildx %s", mine, theirs)
	}
	// A build that fails leaves an earlier file as it was.
	labtest.Write(t, dir, map[string]string{"bad": "FROM scratch\nCOPY missing /\n"})
	kept := filepath.Join(out, "kiln.docker.tar")
	before := labtest.Must(os.ReadFile(kept))(t)
	if _, err := c.kiln(t, "", "build", "-f", "bad", "-o", "type=docker,dest="+kept, "."); err == nil {
		t.Error("a missing file was copied")
	}
	if string(before) != string(labtest.Must(os.ReadFile(kept))(t)) {
		t.Error("the failed build has truncated the file of an earlier one")
	}
}

// Exit codes and the answers to --call and --check are those of buildx.
func TestDockerOutputs_CallsAndExitCodesAreThoseOfBuildx(t *testing.T) {
	s := sharedStack(t)
	dir := s.dir(t, map[string]string{
		"Dockerfile": "FROM " + s.base + " AS one\nARG A=1\nRUN true\nFROM one AS two\n",
		"lint":       "FROM " + s.base + " as one\nRun true\nMAINTAINER x\n",
		"strict":     "# check=error=true\nFROM " + s.base + " as one\nRUN true\n",
		"broken":     "FROM " + s.base + "\nRUNN true\n",
		"fails":      "FROM " + s.base + "\nRUN exit 7\n",
		"missing":    "FROM " + s.base + "\nCOPY nothing /\n",
	})
	c := newClients(t, s, dir)
	for _, args := range [][]string{
		{"--call", "outline"},
		{"--call", "outline,format=json"},
		{"--call", "targets"},
		{"--call", "subrequests.describe"},
		{"--check"},
		{"--check", "-f", "lint"},
		{"--call", "check,format=json", "-f", "lint"},
		{"--call", "check,ignorestatus=true", "-f", "lint"},
		{"--check", "-f", "strict"},
		{"--check", "-f", "broken"},
		{"-f", "broken"},
		{"-f", "fails"},
		{"-f", "strict"},
		{"-f", "missing"},
		{"-f", "not-there"},
	} {
		args := append(append([]string{"build", "--progress", "none"}, args...), ".")
		kiln, kilnErr := c.kiln(t, "", args...)
		buildx, buildxErr := c.buildx(t, "", args...)
		if exitCodeOf(kilnErr) != exitCodeOf(buildxErr) {
			t.Errorf("%q ends with %d (%s), buildx with %d (%s)", args, exitCodeOf(kilnErr), kiln.Stderr, exitCodeOf(buildxErr), buildx.Stderr)
		}
		// The sources are named by the session in JSON.
		mine, _, _ := strings.Cut(kiln.Stdout, `"sources"`)
		theirs, _, _ := strings.Cut(buildx.Stdout, `"sources"`)
		if mine != theirs {
			t.Errorf("%q answers\n%s\nbuildx\n%s", args, kiln.Stdout, buildx.Stdout)
		}
	}
}

// Contexts come from where they come from with buildx: standard input, a git
// repository, and a layout on the disk.
func TestDockerInputs_ComeFromWhereTheyComeWithBuildx(t *testing.T) {
	s := sharedStack(t)
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY which /which\n", "which": "directory", "sub/Dockerfile": "FROM scratch\nCOPY sub/Dockerfile /which\n"})
	url, _ := gitServer(t, s.base)
	c := newClients(t, s, dir)
	tar := labtest.Must(lab.Exec(labtest.Context(t, time.Minute), lab.Command{Path: "/usr/bin/env", Args: []string{"tar", "-cz", "-C", dir, "."}}))(t).Stdout
	layout := filepath.Join(t.TempDir(), "layout")
	labtest.Must(c.kiln(t, "", "build", "-t", "layout:1", "-o", "type=oci,tar=false,dest="+layout, "."))(t)
	fromLayout := "FROM layout\n"
	for _, test := range []struct {
		name, stdin string
		args        []string
	}{
		{"tar", tar, []string{"-"}},
		{"tar-file", tar, []string{"-f", "sub/Dockerfile", "-"}},
		{"dockerfile-only", "FROM " + s.base + "\nRUN echo alone >/which\n", []string{"-"}},
		{"dockerfile-stdin", "FROM scratch\nCOPY which /which\n", []string{"-f", "-", "."}},
		{"git", "", []string{url}},
		{"git-ref", "", []string{url + "#other"}},
		{"git-subdirectory", "", []string{url + "#main:sub/dir"}},
		{"git-query", "", []string{url + "?branch=other"}},
		{"git-dockerfile-stdin", "FROM scratch\nCOPY which /which\n", []string{"-f", "-", url}},
		{"git-named", "FROM scratch\nCOPY --from=repo which /which\n", []string{"--build-context", "repo=" + url, "-f", "-", "."}},
		{"layout", fromLayout, []string{"--build-context", "layout=oci-layout://" + layout + ":1", "-f", "-", "."}},
	} {
		t.Run(test.name, func(t *testing.T) {
			kiln, buildx := t.TempDir(), t.TempDir()
			args := append([]string{"build", "--progress", "plain"}, test.args...)
			if _, err := c.buildx(t, test.stdin, append(args, "-o", buildx)...); err != nil {
				t.Fatalf("buildx does not: %v", err)
			}
			labtest.Must(c.kiln(t, test.stdin, append(args, "-o", kiln)...))(t)
			sameFiles(t, kiln, buildx)
		})
	}
}
