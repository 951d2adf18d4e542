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
	"github.com/kilnbuild/kiln/services/builder/internal/guard"
)

// gitRef leaves out what git-check-ref-format(1) forbids, and a leading "-",
// which git would read as an option.
var gitRef = regexp.MustCompile(`^[A-Za-z0-9_./@+][A-Za-z0-9_./@+=-]*$`)

// gitContext lets pass only what git can read as nothing but a repository of
// another host: no option, no local path, no remote helper ("ext::…"). Which hosts
// are allowed is the guard's to say.
func gitContext(field string, in *builderv1.GitContext) (*build.GitContext, error) {
	raw := in.GetUrl()
	if f := guard.WellFormed(raw); f != nil {
		f.Field = field + ".url"
		return nil, f
	}
	if strings.ContainsAny(raw, "#?") {
		return nil, fault.Invalid(field+".url", guard.Redacted(raw), "has a fragment or a query",
			"name the branch in ref and the directory in subdir")
	}
	if u, err := url.Parse(raw); err == nil && u.User != nil {
		if _, secret := u.User.Password(); secret {
			return nil, fault.Invalid(field+".url", guard.Redacted(raw), "holds a password, which would end up in records and logs",
				"leave the credentials out of the URL")
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
