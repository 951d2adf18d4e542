package grpcapi

import (
	"fmt"
	"maps"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/kilnbuild/kiln/pkg/fault"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/guard"
)

// maxInlineBytes bounds all files of an inline context together.
const maxInlineBytes = 4 << 20

// sources translates what the build reads: its context, its named contexts and
// its Dockerfile.
func sources(spec *build.Spec, in *builderv1.BuildSpec) (err error) {
	if len(in.GetDefinition()) > 0 {
		return nil // which stands in place of all three
	}
	if spec.Context, err = contextOf("spec.context", in.GetContext()); err != nil {
		return err
	}
	if spec.NamedContexts, err = namedContexts(in.GetNamedContexts()); err != nil {
		return err
	}
	spec.Dockerfile, err = dockerfileOf(in, spec.Context)
	return err
}

// namedContexts are the contexts by the names that BuildKit looks them up by:
// those of images, as short as they can be.
func namedContexts(in map[string]*builderv1.Context) (map[string]build.Context, error) {
	if len(in) == 0 {
		return nil, nil
	}
	all := make(map[string]build.Context, len(in))
	for _, name := range slices.Sorted(maps.Keys(in)) {
		field := fmt.Sprintf("spec.named_contexts[%q]", name)
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return nil, fault.Invalid(field, name, "is not a name that a Dockerfile can use: "+err.Error(),
				`write it like a stage or an image: "src", or "docker.io/library/alpine:3.22"`)
		}
		short := strings.TrimSuffix(reference.FamiliarString(named), ":latest")
		if _, twice := all[short]; twice {
			return nil, fault.Invalid(field, name, fmt.Sprintf("is another spelling of %q, which is named too", short), "name each context once")
		}
		if all[short], err = contextOf(field, in[name]); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func contextOf(field string, in *builderv1.Context) (build.Context, error) {
	var out build.Context
	var err error
	switch kind := in.GetKind().(type) {
	case *builderv1.Context_Inline:
		out.Inline, err = inlineContext(field+".inline.files", kind.Inline)
	case *builderv1.Context_Directory:
		out.Directory = &build.DirectoryContext{Path: filepath.Clean(kind.Directory.GetPath())}
	case *builderv1.Context_Git:
		out.Git, err = gitContext(field+".git", kind.Git)
	case *builderv1.Context_Http:
		out.HTTP, err = httpContext(field+".http.url", kind.Http)
	case *builderv1.Context_Uploaded:
		out.Uploaded = &build.UploadedContext{Digest: kind.Uploaded.GetDigest()}
	case *builderv1.Context_OciLayout:
		out.OCILayout = &build.OCILayoutContext{Path: filepath.Clean(kind.OciLayout.GetPath()), Digest: kind.OciLayout.GetDigest()}
	case *builderv1.Context_Image:
		out.Image = &build.ImageContext{}
		out.Image.Reference, err = imageOf(field+".image.reference", kind.Image.GetReference())
	default:
		err = fault.Invalid(field, "", "is missing",
			fmt.Sprintf(`say what to build from: %[1]s.inline {} for a Dockerfile that copies no files, %[1]s.directory {"path": …}, or %[1]s.git {"url": …}`, field))
	}
	return out, err
}

func inlineContext(field string, in *builderv1.InlineContext) (*build.InlineContext, error) {
	var out build.InlineContext
	total := 0
	names := slices.Sorted(maps.Keys(in.GetFiles()))
	dirs := make(map[string]string) // each directory that is needed, and by which file
	for _, name := range names {
		if !cleanPath(name) {
			return nil, fault.Invalid(field, name, "is not a clean relative path",
				`write it like "src/main.go": relative, with "/", without "." and ".." and without "/" at the end`)
		}
		file := in.GetFiles()[name]
		if total += len(file.GetContent()); total > maxInlineBytes {
			return nil, fault.Invalid(field, name, fmt.Sprintf("brings the files to more than %d bytes", maxInlineBytes),
				"send a larger context with UploadContext, name a directory or a repository, or build with `kiln build`")
		}
		out.Files = append(out.Files, build.File{Path: name, Content: file.GetContent(), Mode: file.GetMode()})
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			dirs[dir] = name
		}
	}
	for _, name := range names {
		if below, clash := dirs[name]; clash {
			return nil, fault.Invalid(field, name, fmt.Sprintf("is a file, and %q needs it as a directory", below), "rename one of the two")
		}
	}
	return &out, nil
}

// httpContext looks at the form of the URL; which hosts are allowed is the guard's
// to say.
func httpContext(field string, in *builderv1.HttpContext) (*build.HTTPContext, error) {
	raw := in.GetUrl()
	if f := guard.WellFormed(raw); f != nil {
		f.Field = field
		return nil, f
	}
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fault.Invalid(field, guard.Redacted(raw), "is not the URL of an archive", `write it like "https://host/path/project.tar.gz"`)
	}
	if u.Fragment != "" {
		return nil, fault.Invalid(field, guard.Redacted(raw), "has a fragment, which no server sees", "leave out what follows the #")
	}
	if _, secret := u.User.Password(); secret {
		return nil, fault.Invalid(field, guard.Redacted(raw), "holds a password, which would end up in records and logs",
			"leave the credentials out of the URL, or send the archive with UploadContext")
	}
	return &build.HTTPContext{URL: raw, Digest: in.GetDigest()}, nil
}

// imageOf is a reference in full.
func imageOf(field, image string) (string, error) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return "", fault.Invalid(field, image, "is not an image reference: "+err.Error(),
			`write it like "alpine:3.22" or "localhost:5000/web@sha256:…"`)
	}
	return reference.TagNameOnly(named).String(), nil
}
