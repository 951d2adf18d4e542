package buildkit

import (
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/client/llb"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/fsutil"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// Names by which the Dockerfile frontend asks for its sources.
const (
	contextName    = "context"
	dockerfileName = "dockerfile"
)

// mainLayout is the name of the OCI layout that is the context. As all such names it
// must have the form of a repository.
const mainLayout = "kiln/context"

// addContexts gives the solve what it reads: its context and Dockerfile, and the
// named contexts.
func (j *job) addContexts() error {
	if err := j.addMainContext(j.spec.Context); err != nil {
		return err
	}
	for i, name := range slices.Sorted(maps.Keys(j.spec.NamedContexts)) {
		if err := j.addNamedContext(i, name, j.spec.NamedContexts[name]); err != nil {
			return err
		}
	}
	if j.spec.Dockerfile.Inline != "" {
		// Its time stands for its content, so that the name of the context, which it
		// shares, can stay. No step can copy a Dockerfile that is sent apart.
		file := []build.File{{Path: "Dockerfile", Content: []byte(j.spec.Dockerfile.Inline)}}
		j.opt.LocalMounts[dockerfileName] = inlineFS(file, timeOf(file))
		// Says that the Dockerfile is sent, also where the context is not.
		j.opt.FrontendAttrs["dockerfilekey"] = dockerfileName
		delete(j.opt.FrontendInputs, dockerfileName)
	}
	return nil
}

func (j *job) addMainContext(c build.Context) error {
	if c == (build.Context{}) {
		return nil
	}
	files, key, err := j.files("spec.context", c)
	if err != nil {
		return err
	}
	if files != nil {
		j.contextKey = key
		j.opt.LocalMounts[contextName], j.opt.LocalMounts[dockerfileName] = files, files
		return nil
	}
	var state llb.State
	switch {
	case c.Git != nil:
		state, err = j.git("spec.context", *c.Git, "[internal] load git context")
	case c.OCILayout != nil:
		var ref string
		if ref, err = j.layout("spec.context", mainLayout, *c.OCILayout); err == nil {
			state = llb.OCILayout(ref, llb.OCIStore("", mainLayout), llb.Platform(j.platform()), llb.WithCustomName("[internal] load OCI layout context"))
		}
	case c.Image != nil:
		opts := []llb.ImageOption{llb.Platform(j.platform()), llb.WithCustomName("[internal] load image context " + c.Image.Reference)}
		if j.spec.Pull {
			opts = append(opts, llb.ResolveModeForcePull)
		}
		state = llb.Image(c.Image.Reference, opts...)
	default: // an archive that is yet to be fetched
		return nil
	}
	if err != nil {
		return err
	}
	j.opt.FrontendInputs[contextName], j.opt.FrontendInputs[dockerfileName] = state, state
	return nil
}

// addNamedContext gives the frontend a context by a name. Images it resolves by
// itself, for each platform, and takes their configuration too.
func (j *job) addNamedContext(i int, name string, c build.Context) error {
	field := fmt.Sprintf("spec.named_contexts[%q]", name)
	attr := func(value string) { j.opt.FrontendAttrs["context:"+name] = value }
	files, key, err := j.files(field, c)
	if err != nil {
		return err
	}
	switch {
	case files != nil:
		// The solve's SharedKey says which context this is; the name of the mount,
		// which the daemon tells contexts apart by too, says which of the others.
		mount := "context:" + name + ":" + key
		j.opt.LocalMounts[mount] = files
		attr("local:" + mount)
	case c.Git != nil:
		input := "context:" + name
		state, err := j.git(field, *c.Git, "[context "+name+"] load git context")
		if err != nil {
			return err
		}
		j.opt.FrontendInputs[input] = state
		attr("input:" + input)
	case c.OCILayout != nil:
		ref, err := j.layout(field, fmt.Sprintf("kiln/layout%d", i), *c.OCILayout)
		if err != nil {
			return err
		}
		attr("oci-layout://" + ref)
	case c.Image != nil:
		attr("docker-image://" + c.Image.Reference)
	}
	return nil
}

// files returns a context that the builder sends, and a key that changes with what
// it is of; nil when the daemon fetches it. Under one key the daemon tells files
// apart by name, size, mode and time.
func (j *job) files(field string, c build.Context) (_ fsutil.FS, key string, _ error) {
	switch {
	case c.Inline != nil:
		// These have no time, so that other content must have another key.
		return inlineFS(c.Inline.Files, 0), "inline:" + contentKey(c.Inline.Files), nil
	case c.Directory != nil:
		root, err := j.daemon.opts.Roots.Open(c.Directory.Path)
		if err != nil {
			return nil, "", inField(field+".directory.path", err)
		}
		j.keep(root)
		return regularFS{fsutil.NewRootFS(stampedRoot{fsutil.NewRoot(root)}), root}, "directory:" + c.Directory.Path, nil
	case c.Uploaded != nil:
		tree, err := j.daemon.opts.Contexts.Open(j.spec.Project, c.Uploaded.Digest)
		if err != nil {
			return nil, "", inField(field+".uploaded.digest", err)
		}
		j.keep(tree)
		// The times of its files stand for their content, so that the key can stay.
		return treeFS(tree), "uploaded", nil
	case c.HTTP != nil:
		return nil, "", inField(field+".http.url", j.daemon.opts.Guard.CheckURL(c.HTTP.URL))
	default:
		return nil, "", nil
	}
}

// git reads a repository as a graph rather than by the URL of an attribute, which
// the frontend takes for git by its looks only.
func (j *job) git(field string, c build.GitContext, name string) (llb.State, error) {
	if err := j.daemon.opts.Guard.CheckURL(c.URL); err != nil {
		return llb.State{}, inField(field+".git.url", err)
	}
	opts := []llb.GitOption{llb.GitRef(c.Ref), llb.GitSubDir(c.Subdir), llb.KnownSSHHosts(noHostKey), llb.WithCustomName(name)}
	if keep := j.spec.BuildArgs["BUILDKIT_CONTEXT_KEEP_GIT_DIR"]; keep == "1" || keep == "true" {
		opts = append(opts, llb.KeepGitDir())
	}
	return llb.Git(c.URL, "", opts...), nil
}

// layout opens an OCI layout for the daemon to read under the name of a store, and
// returns the reference of its image there.
func (j *job) layout(field, store string, c build.OCILayoutContext) (string, error) {
	root, err := j.daemon.opts.Roots.Open(c.Path)
	if err != nil {
		return "", inField(field+".oci_layout.path", err)
	}
	j.keep(root)
	blobs := layoutStore{root: root}
	f, _, err := blobs.open(digest.Digest(c.Digest))
	if err != nil {
		return "", inField(field+".oci_layout.digest", layoutLacks(c))
	}
	j.opt.OCIStores[store] = blobs
	return store + "@" + c.Digest, f.Close()
}

// platform is the one that files of an image are taken for: the build's, when it
// has one, else the daemon's own.
func (j *job) platform() ocispecs.Platform {
	if len(j.spec.Platforms) == 1 {
		if only, err := platforms.Parse(j.spec.Platforms[0]); err == nil {
			return only
		}
	}
	return j.daemon.ownPlatform()
}
