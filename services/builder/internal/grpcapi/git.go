package grpcapi

import (
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/kilnbuild/kiln/pkg/fault"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

var (
	// scpURL is git's short form of an ssh URL: user@host:path.
	scpURL = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9.-]*:[^-:\s#][^\s#]*$`)
	// gitRef leaves out what git-check-ref-format(1) forbids, and a leading "-",
	// which git would read as an option.
	gitRef = regexp.MustCompile(`^[A-Za-z0-9_./@+][A-Za-z0-9_./@+=-]*$`)
)

// gitContext lets pass only what git can read as nothing but a repository of
// another host: no option, no local path, no remote helper ("ext::…").
func gitContext(field string, in *builderv1.GitContext) (*build.GitContext, error) {
	raw := in.GetUrl()
	if !scpURL.MatchString(raw) {
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" || strings.HasPrefix(u.Host, "-") {
			return nil, fault.Invalid(field+".url", redacted(raw), "is not the URL of a repository",
				`write it like "https://host/group/project.git" or "git@host:group/project.git"`)
		}
		switch u.Scheme {
		case "https", "http", "ssh", "git":
		default:
			return nil, fault.Invalid(field+".url", redacted(raw), "has a scheme that is not allowed", "use https, http, ssh or git")
		}
		if u.Fragment != "" || u.RawQuery != "" {
			return nil, fault.Invalid(field+".url", redacted(raw), "has a fragment or a query",
				"name the branch in ref and the directory in subdir")
		}
		if u.User != nil {
			if _, secret := u.User.Password(); secret {
				return nil, fault.Invalid(field+".url", redacted(raw), "holds a password, which would end up in records and logs",
					"leave the credentials out of the URL")
			}
		}
	}
	if ref := in.GetRef(); ref != "" && (!gitRef.MatchString(ref) || strings.Contains(ref, "..")) {
		return nil, fault.Invalid(field+".ref", ref, "is not a branch, tag or commit", `write it like "main", "v1.2" or a commit's full hash`)
	}
	subdir := in.GetSubdir()
	if subdir != "" && (!filepath.IsLocal(subdir) || path.Clean(subdir) != subdir) {
		return nil, fault.Invalid(field+".subdir", subdir, "is not a clean path in the repository", `write it like "services/web"`)
	}
	return &build.GitContext{URL: raw, Ref: in.GetRef(), Subdir: subdir}, nil
}

// redacted is a URL without its password, for messages.
func redacted(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.User == nil {
		if strings.Contains(raw, "@") && err != nil {
			return "(not shown)"
		}
		return raw
	}
	return u.Redacted()
}
