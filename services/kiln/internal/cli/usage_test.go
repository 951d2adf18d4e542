package cli_test

import (
	"io"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/kiln/internal/cli"
)

func TestWrongUsage_IsAnErrorThatNamesTheHelp(t *testing.T) {
	clean(t)
	for line, want := range map[string]string{
		"bogus":                   `unknown command "bogus" for "kiln"; see kiln --help`,
		"builds shwo":             `unknown command "shwo" for "kiln builds"; did you mean show?; see kiln builds --help`,
		"cache foo":               `unknown command "foo" for "kiln cache"; see kiln cache --help`,
		"cache policy foo":        `unknown command "foo" for "kiln cache policy"; see kiln cache policy --help`,
		"build --pushh .":         `unknown flag: --pushh; see kiln build --help`,
		"cache policy set":        "wrong number of arguments: 0; the usage is `kiln cache policy set FILE [flags]`",
		"cache unpin":             "wrong number of arguments: 0",
		"cache plan x":            `kiln cache plan takes no argument, and was given "x"; see kiln cache plan --help`,
		"cache prune --plan abc":  "kiln cache plan",
		"janitor run --plan abc":  "kiln janitor plan",
		"janitor plan --in 7days": "7d or 12h",
	} {
		cmd := cli.New()
		cmd.SetOut(io.Discard)
		cmd.SetErr(io.Discard)
		cmd.SetArgs(strings.Fields(line))
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(fault.Line(err), want) {
			t.Errorf("kiln %s: %v; want %s", line, err, want)
		}
	}
}

func TestGroupWithoutSubcommand_PrintsItsHelp(t *testing.T) {
	clean(t)
	if got := output(t, "cache"); !strings.Contains(got, "kiln cache [command]") || strings.Contains(got, "kiln cache [flags]") {
		t.Errorf("%s", got)
	}
}

func TestHelp_ShowsNoValuesOfVariables(t *testing.T) {
	clean(t)
	t.Setenv("KILN_PROFILE", "mine")
	t.Setenv("KILN_BUILDER", "mybuilder:1")
	t.Setenv("KILN_CACHE_DIR", "/mycaches")
	for _, command := range []string{"build", "builds", "debug"} {
		if got := output(t, command, "--help"); strings.Contains(got, `(default "mine"`) || strings.Contains(got, "mybuilder") ||
			strings.Contains(got, "/mycaches") {
			t.Errorf("kiln %s: %s", command, got)
		}
	}
}
