package buildkit

import (
	"os"
	"path"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/util/staticfs"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// Names by which the Dockerfile frontend asks for its sources.
const (
	contextName    = "context"
	dockerfileName = "dockerfile"
)

// addContext gives the solve its context and Dockerfile.
func (d *Daemon) addContext(opt *client.SolveOpt, spec build.Spec) (*os.Root, error) {
	var root *os.Root
	switch {
	case spec.Context.Inline != nil:
		files := inlineFS(spec.Context.Inline.Files)
		opt.LocalMounts = map[string]fsutil.FS{contextName: files, dockerfileName: files}
	case spec.Context.Directory != nil:
		var err error
		if root, err = d.roots.Open(spec.Context.Directory.Path); err != nil {
			return nil, err
		}
		files := fsutil.NewRootFS(fsutil.NewRoot(root))
		opt.LocalMounts = map[string]fsutil.FS{contextName: files, dockerfileName: files}
	case spec.Context.Git != nil:
		// As an input rather than as the URL of the "context" attribute, which
		// takes a URL for git by its looks only.
		git := spec.Context.Git
		state := llb.Git(git.URL, "", llb.GitRef(git.Ref), llb.GitSubDir(git.Subdir),
			llb.WithCustomName("[internal] load git context"))
		opt.FrontendInputs = map[string]llb.State{contextName: state, dockerfileName: state}
		opt.LocalMounts = map[string]fsutil.FS{}
	}
	if spec.Dockerfile.Inline != "" {
		files := inlineFS([]build.File{{Path: "Dockerfile", Content: []byte(spec.Dockerfile.Inline)}})
		opt.LocalMounts[dockerfileName] = files
		// Says that the Dockerfile is sent, also where the context is not.
		opt.FrontendAttrs["dockerfilekey"] = dockerfileName
		delete(opt.FrontendInputs, dockerfileName)
	}
	return root, nil
}

// inlineFS is a file system of the files and the directories above them. Files
// have no time, so that the same content is the same context.
func inlineFS(files []build.File) fsutil.FS {
	tree := staticfs.NewFS()
	seen := make(map[string]bool)
	for _, file := range files {
		for dir := path.Dir(file.Path); dir != "." && !seen[dir]; dir = path.Dir(dir) {
			seen[dir] = true
			tree.Add(dir, &fstypes.Stat{Mode: uint32(os.ModeDir | 0o755)}, nil)
		}
		mode := file.Mode
		if mode == 0 {
			mode = 0o644
		}
		tree.Add(file.Path, &fstypes.Stat{Mode: mode}, file.Content)
	}
	return tree
}
