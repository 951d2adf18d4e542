package e2e_test

import (
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
)

// gitServer serves a repository on loopback. It returns the repository's URL and the
// hash of the first commit.
func gitServer(t *testing.T, base string) (url, first string) {
	t.Helper()
	handler, first := gitHandler(t, base)
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server.URL + "/repo.git", first
}

// submoduleURL is where nothing is, on loopback.
const submoduleURL = "http://127.0.0.1:1/nobody.git"

// gitHandler serves the repository /repo.git with git http-backend. It has branch
// main, with a subdirectory, branch other, branch submodule, with one at
// submoduleURL, and tag v1 on the first commit, whose hash it returns.
func gitHandler(t *testing.T, base string) (handler http.Handler, first string) {
	t.Helper()
	projects := t.TempDir()
	work := filepath.Join(projects, "work")
	run := func(args ...string) string {
		t.Helper()
		out := labtest.Must(lab.Exec(labtest.Context(t, time.Minute), lab.Command{
			Path: "/usr/bin/env", Args: append([]string{"git", "-C", work}, args...),
			Env: []string{
				"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
				"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.org",
			},
		}))(t)
		return strings.TrimSpace(out.Stdout)
	}
	text := "FROM " + base + "\nCOPY which /which\n"
	labtest.Write(t, work, map[string]string{"Dockerfile": text, "which": "first"})
	run("init", "-q", "-b", "main")
	run("add", ".")
	run("commit", "-q", "-m", "first")
	run("tag", "v1")
	first = run("rev-parse", "HEAD")
	labtest.Write(t, work, map[string]string{"which": "main", "sub/dir/Dockerfile": text, "sub/dir/which": "subdirectory"})
	run("add", ".")
	run("commit", "-q", "-m", "second")
	run("checkout", "-q", "-b", "other")
	labtest.Write(t, work, map[string]string{"which": "other"})
	run("commit", "-q", "-a", "-m", "third")
	run("checkout", "-q", "-b", "submodule", "main")
	labtest.Write(t, work, map[string]string{".gitmodules": "[submodule \"sub\"]\n\tpath = module\n\turl = " + submoduleURL + "\n"})
	run("add", ".")
	run("update-index", "--add", "--cacheinfo", "160000,"+first+",module")
	run("commit", "-q", "-m", "fourth")
	run("checkout", "-q", "main")
	run("clone", "-q", "--bare", work, filepath.Join(projects, "repo.git"))

	return &cgi.Handler{
		Path: filepath.Join(run("--exec-path"), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + projects, "GIT_HTTP_EXPORT_ALL=1"},
	}, first
}

func TestGitContext(t *testing.T) {
	s := sharedStack(t)
	url, first := gitServer(t, s.base)
	for name, tc := range map[string]struct{ ref, subdir, want string }{
		"default": {"", "", "main"},
		"branch":  {"other", "", "other"},
		"tag":     {"v1", "", "first"},
		"commit":  {first, "", "first"},
		"subdir":  {"main", "sub/dir", "subdirectory"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := git(url, tc.ref, s.ref("git-"+name))
			spec.GetContext().GetGit().Subdir = tc.subdir
			s.succeed(t, spec)
			if got := file(t, s.ref("git-"+name), "", "/which"); got != tc.want {
				t.Errorf("/which is %q, want %q", got, tc.want)
			}
		})
	}
	t.Run("inline Dockerfile", func(t *testing.T) {
		spec := git(url, "", s.ref("git-inline"))
		spec.Dockerfile = &builderv1.Dockerfile{Source: &builderv1.Dockerfile_Inline{Inline: "FROM scratch\nCOPY which /inline\n"}}
		s.succeed(t, spec)
		if got := file(t, s.ref("git-inline"), "", "/inline"); got != "main" {
			t.Errorf("/inline is %q", got)
		}
	})
	for name, spec := range map[string]*builderv1.BuildSpec{
		"no such branch":     git(url, "no-such-branch"),
		"no such repository": git(strings.Replace(url, "repo.git", "none.git", 1), ""),
	} {
		t.Run(name, func(t *testing.T) {
			r, failure := s.fail(t, spec)
			if failure.GetReason() != errorsv1.Reason_REASON_SOURCE_NOT_FOUND {
				t.Errorf("%v", r.outcome.GetError())
			}
			hasRemedy(t, r)
		})
	}
}
