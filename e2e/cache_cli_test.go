package e2e_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

// The commands of a person who looks at the caches, plans, prunes, pins and sets the
// policy: what they show is so, and what is wrong is told with its place.
func TestS4_KilnCache(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{}))(t)
	m := startCacheManager(t, l, manual(), nil, daemon)
	for _, name := range []string{"one", "two"} {
		dir := t.TempDir()
		labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM scratch\nCOPY " + name + " /\n", name: strings.Repeat(name, 100_000)})
		labtest.Must(lab.Exec(ctx, buildctl(t, daemon.Addr, dir)))(t)
	}
	time.Sleep(1200 * time.Millisecond)
	kiln := func(args ...string) (string, error) {
		out, err := lab.Exec(ctx, lab.Command{
			Path: labtest.Must(lab.Bin("kiln"))(t), Args: append([]string{"cache"}, args...), Env: []string{"KILN_CACHE_MANAGER=" + m.Addr},
		})
		return out.Stdout + out.Stderr, err
	}
	shows := func(args []string, want ...string) string {
		t.Helper()
		out := labtest.Must(kiln(args...))(t)
		for _, w := range want {
			if !regexp.MustCompile(w).MatchString(out) {
				t.Errorf("kiln cache %s: no %q in\n%s", strings.Join(args, " "), w, out)
			}
		}
		return out
	}
	shows([]string{"du"}, `a +regular +2 `, `100 GB, 2d`)
	shows([]string{"ls", "--order-by", "size_bytes desc"}, `regular +30\d kB .* COPY one`, `history`)
	if out := shows([]string{"ls", "--filter", `type = REGULAR AND size_bytes > 100000 AND age < "1h"`}, `COPY one`); strings.Contains(out, "local source") {
		t.Errorf("the filter lets all pass:\n%s", out)
	}
	if out, err := kiln("ls", "--filter", "type = VOLUME"); err == nil || !strings.Contains(out, "at character 8: there is no type of this name") {
		t.Errorf("%v\n%s", err, out)
	}
	shows([]string{"plan"}, `goes: 0 records`)
	shows([]string{"plan", "--in", "49h"}, `remove +a .*longer than the 2d of rule "age"`, `stays: 0 records`)

	strict := filepath.Join(t.TempDir(), "strict.yaml")
	labtest.Write(t, filepath.Dir(strict), map[string]string{"strict.yaml": "rules:\n- name: layers\n  match: {types: [regular]}\n  keep: {bytes: 1kB}\n"})
	pin := strings.TrimSpace(shows([]string{"pin", "--description", "COPY two", "--reason", "wanted"}))
	shows([]string{"pins"}, pin, `COPY two`, `wanted`)
	plan := shows([]string{"plan", "--policy", strict, "--kept"}, `remove .*COPY one`, `keep .*pin `+pin+` keeps it`)
	digest := regexp.MustCompile(`sha256:[0-9a-f]{64}`).FindString(plan)
	shows([]string{"prune", "--policy", strict}, `would remove 1 record`)
	shows([]string{"prune", "--plan", digest, "--force"}, `remove a `, `succeeded: removed 1 record, 30\d kB`)
	if out, err := kiln("prune", "--plan", digest, "--force"); err == nil || !strings.Contains(out, "carried out before") {
		t.Errorf("the plan again: %v\n%s", err, out)
	}
	shows([]string{"runs"}, `succeeded +demand `, `demand \(dry\)`, `layers 1`)
	shows([]string{"runs", "--filter", "dry_run = false AND trigger = DEMAND"}, `layers 1`)
	shows([]string{"plan", "--daemon-rules"}, `goes: 0 records`)
	shows([]string{"unpin", pin}, pin)

	shows([]string{"policy", "set", strict, "--check"}, `version 2 would be in force: 1 rule\n`)
	shows([]string{"policy", "set", strict}, `version 2 in force`)
	shows([]string{"policy", "get"}, `name: layers`, `version: "2"`)
	shows([]string{"policy", "get", "--version", "1"}, `name: age`)
	for text, want := range map[string]string{
		"rules:\n- name: a\n  keep: {bytes: 100GBB}\n":               `3:17: "100GBB" is not a size`,
		"rules:\n- name: a\n  keep: {bytes: -5}\n":                   `3:17`,
		"rules:\n- name: a\n  match: {types: [volume]}\n":            `3:19`,
		"rules:\n- {name: a, extends: b}\n- name: b\n  extends: a\n": `2:22: rules\[0\].extends: makes a cycle: a -> b -> a`,
		"rules:\n- name: all\n  keep: {records: 0}\n":                `would remove everything .*force`,
		"rules:\n- name: a\n  match: {description: '('}\n":           `3:24: rules\[0\].match.description: is not a regular expression`,
	} {
		file := filepath.Join(t.TempDir(), "p.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := kiln("policy", "set", file); err == nil || !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("%s\n%v\n%s\nwant %s", text, err, out, want)
		}
	}
	shows([]string{"policy", "get"}, `version: "2"`)
}
