package e2e_test

import (
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// inline is a build whose files, with the Dockerfile among them, stand in the
// request.
func inline(files map[string]string, tags ...string) *builderv1.BuildSpec {
	context := &builderv1.InlineContext{Files: map[string]*builderv1.InlineFile{}}
	for name, content := range files {
		context.Files[name] = &builderv1.InlineFile{Content: []byte(content)}
	}
	return &builderv1.BuildSpec{
		Context: &builderv1.Context{Kind: &builderv1.Context_Inline{Inline: context}},
		Outputs: push(tags...),
	}
}

// dockerfile is a build of nothing but a Dockerfile.
func dockerfile(text string, tags ...string) *builderv1.BuildSpec {
	spec := inline(nil, tags...)
	spec.Dockerfile = &builderv1.Dockerfile{Source: &builderv1.Dockerfile_Inline{Inline: text}}
	return spec
}

// directory is a build of a directory of the builder's host.
func directory(path string, tags ...string) *builderv1.BuildSpec {
	return &builderv1.BuildSpec{
		Context: &builderv1.Context{Kind: &builderv1.Context_Directory{Directory: &builderv1.DirectoryContext{Path: path}}},
		Outputs: push(tags...),
	}
}

// push is one output with all the tags, or none without a tag.
func push(tags ...string) []*builderv1.Output {
	if len(tags) == 0 {
		return nil
	}
	return []*builderv1.Output{{Kind: &builderv1.Output_Registry{Registry: &builderv1.RegistryOutput{Tags: tags}}}}
}

// registryCache is the cache mode REGISTRY.
func registryCache() *builderv1.CachePolicy {
	return &builderv1.CachePolicy{Mode: builderv1.CacheMode_CACHE_MODE_REGISTRY}
}

// detail returns the first detail of a type in a status, or its nil.
func detail[M proto.Message](status *rpcstatus.Status) M {
	var none M
	for _, any := range status.GetDetails() {
		m, err := any.UnmarshalNew()
		if err != nil {
			continue
		}
		if m, ok := m.(M); ok {
			return m
		}
	}
	return none
}

// git is a build of a repository's root.
func git(url, ref string, tags ...string) *builderv1.BuildSpec {
	return &builderv1.BuildSpec{
		Context: &builderv1.Context{Kind: &builderv1.Context_Git{Git: &builderv1.GitContext{Url: url, Ref: ref}}},
		Outputs: push(tags...),
	}
}
