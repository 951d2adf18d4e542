package cli_test

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/pkg/testkit"
	"github.com/kilnbuild/kiln/services/kiln/internal/cli"
)

// clean takes what a user's environment would change out of it.
func clean(t *testing.T) {
	t.Helper()
	for _, name := range []string{
		"KILN_BUILDER", "KILN_TLS_CA", "KILN_TLS_CERT", "KILN_TLS_KEY", "KILN_TLS_SERVER_NAME", "KILN_PROJECT", "KILN_CACHE_REPOSITORY",
	} {
		t.Setenv(name, "")
	}
}

func output(t *testing.T, args ...string) string {
	t.Helper()
	var out strings.Builder
	cmd := cli.New()
	cmd.SetOut(&out)
	cmd.SetArgs(args)
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return out.String()
}

// The help of each command, which is what a user has.
func TestHelp(t *testing.T) {
	clean(t)
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		path := strings.Fields(cmd.CommandPath())
		if !cmd.HasSubCommands() && cmd.Name() != "down" && cmd.Example == "" {
			t.Errorf("%s has no example", cmd.CommandPath())
		}
		testkit.Golden(t, "help-"+strings.Join(path, "-")+".txt", output(t, append(path[1:], "--help")...))
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(cli.New())
}

// The shell completes commands, and the values of flags that have some.
func TestCompletion(t *testing.T) {
	clean(t)
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if script := output(t, "completion", shell); !strings.Contains(script, "__complete") {
			t.Errorf("%s: %d bytes", shell, len(script))
		}
	}
	for want, args := range map[string][]string{
		"watch\tShow a build": {"__complete", "builds", "w"},
		"interrupted\n":       {"__complete", "builds", "ls", "--state", ""},
		"rawjson\n":           {"__complete", "build", "--progress", ""},
		"json\n":              {"__complete", "builds", "show", "--format", ""},
	} {
		if got := output(t, args...); !strings.Contains(got, want) {
			t.Errorf("%v: %q, want %q", args, got, want)
		}
	}
	// A builder that does not answer completes nothing, and says nothing.
	if got := output(t, "__complete", "builds", "--builder", "127.0.0.1:1", "watch", ""); got != ":4\n" {
		t.Errorf("without a builder: %q", got)
	}
}
