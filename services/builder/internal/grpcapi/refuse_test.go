package grpcapi_test

import (
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	"github.com/kilnbuild/kiln/pkg/fault"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

func privateKey(t *testing.T) []byte {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), "")
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block)
}

func lockedKey(t *testing.T) []byte {
	t.Helper()
	block, err := ssh.MarshalPrivateKeyWithPassphrase(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), "", []byte("passphrase"))
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block)
}

func text(dockerfile string) *builderv1.Dockerfile {
	return &builderv1.Dockerfile{Source: &builderv1.Dockerfile_Inline{Inline: dockerfile}}
}

func dockerfile(path string) func(*builderv1.BuildSpec) {
	return func(s *builderv1.BuildSpec) {
		s.Dockerfile = &builderv1.Dockerfile{Source: &builderv1.Dockerfile_Path{Path: path}}
	}
}

func archive(format builderv1.ArchiveFormat, name string) *builderv1.Output {
	return &builderv1.Output{Kind: &builderv1.Output_Archive{Archive: &builderv1.ArchiveOutput{Format: format, Artifact: name}}}
}

func local(name string) *builderv1.Output {
	return &builderv1.Output{Kind: &builderv1.Output_Local{Local: &builderv1.LocalOutput{Artifact: name}}}
}

func explicit(imports, exports *builderv1.CacheEntry) *builderv1.CachePolicy {
	policy := &builderv1.CachePolicy{Mode: builderv1.CacheMode_CACHE_MODE_EXPLICIT}
	if imports != nil {
		policy.Imports = []*builderv1.CacheEntry{imports}
	}
	if exports != nil {
		policy.Exports = []*builderv1.CacheEntry{exports}
	}
	return policy
}

func entry(kind string, attributes ...string) *builderv1.CacheEntry {
	out := &builderv1.CacheEntry{Type: kind, Attributes: map[string]string{}}
	for i := 0; i+1 < len(attributes); i += 2 {
		out.Attributes[attributes[i]] = attributes[i+1]
	}
	return out
}

const (
	oci    = builderv1.ArchiveFormat_ARCHIVE_FORMAT_OCI
	docker = builderv1.ArchiveFormat_ARCHIVE_FORMAT_DOCKER
)

// refusal is a request that is refused, by the field that its refusal names.
type refusal struct {
	field  string
	change func(*builderv1.BuildSpec)
}

func contextRefusals() map[string]refusal {
	context := func(field string, c *builderv1.Context) refusal {
		return refusal{field, func(s *builderv1.BuildSpec) { s.Context = c }}
	}
	http := func(url string) *builderv1.Context {
		return &builderv1.Context{Kind: &builderv1.Context_Http{Http: &builderv1.HttpContext{Url: url}}}
	}
	image := func(ref string) *builderv1.Context {
		return &builderv1.Context{Kind: &builderv1.Context_Image{Image: &builderv1.ImageContext{Reference: ref}}}
	}
	named := func(field string, names ...string) refusal {
		return refusal{field, func(s *builderv1.BuildSpec) {
			s.NamedContexts = map[string]*builderv1.Context{}
			for _, name := range names {
				s.NamedContexts[name] = inline()
			}
		}}
	}
	return map[string]refusal{
		"no context":               context("spec.context", nil),
		"a context of no kind":     context("spec.context", &builderv1.Context{}),
		"a path that leaves":       context("spec.context.inline.files", inline("../x")),
		"an absolute path":         context("spec.context.inline.files", inline("/x")),
		"a path not clean":         context("spec.context.inline.files", inline("a//b")),
		"a file and its directory": context("spec.context.inline.files", inline("a", "a/b")),
		"too many bytes":           {"spec.context.inline.files", tooLarge},
		"no such Dockerfile":       {"spec.dockerfile.path", dockerfile("other")},
		"a Dockerfile above":       {"spec.dockerfile.path", dockerfile("../Dockerfile")},
		"git, a local path":        context("spec.context.git.url", git("/srv/repo", "", "")),
		"git, file scheme":         context("spec.context.git.url", git("file:///srv/repo", "", "")),
		"git, remote helper":       context("spec.context.git.url", git("ext::sh -c id", "", "")),
		"git, an option":           context("spec.context.git.url", git("--upload-pack=id", "", "")),
		"git, a password":          context("spec.context.git.url", git("https://u:pw@h/r.git", "", "")),
		"git, a fragment":          context("spec.context.git.url", git("https://h/r.git#main", "", "")),
		"git, ref an option":       context("spec.context.git.ref", git("https://h/r.git", "--x", "")),
		"git, subdir leaves":       context("spec.context.git.subdir", git("https://h/r.git", "", "../x")),
		"http, another scheme":     context("spec.context.http.url", http("file:///etc/passwd")),
		"http, no host":            context("spec.context.http.url", http("https:///x.tar")),
		"http, a password":         context("spec.context.http.url", http("https://u:pw@h/x.tar")),
		"http, a fragment":         context("spec.context.http.url", http("https://h/x.tar#a")),
		"image":                    context("spec.context.image.reference", image("Not An Image")),
		"a context's name":         named(`spec.named_contexts["Not A Name"]`, "Not A Name"),
		"a name spelled twice":     named(`spec.named_contexts["docker.io/library/a:latest"]`, "a", "docker.io/library/a:latest"),
		"a named context": {`spec.named_contexts["a"].git.url`, func(s *builderv1.BuildSpec) {
			s.NamedContexts = map[string]*builderv1.Context{"a": git("ext::x", "", "")}
		}},
	}
}

func outputRefusals() map[string]refusal {
	outputs := func(field string, all ...*builderv1.Output) refusal {
		return refusal{field, func(s *builderv1.BuildSpec) { s.Outputs, s.Platforms = all, nil }}
	}
	return map[string]refusal{
		"a platform":                           {"spec.platforms[0]", func(s *builderv1.BuildSpec) { s.Platforms = []string{"amd64!"} }},
		"a platform twice":                     {"spec.platforms[1]", func(s *builderv1.BuildSpec) { s.Platforms = []string{"linux/arm64", "linux/arm64/v8"} }},
		"a tag":                                outputs("spec.outputs[1].registry.tags[1]", push("a"), push("ok:1", "Not A Tag")),
		"a digest":                             outputs("spec.outputs[0].registry.tags[0]", push("a@sha256:"+strings.Repeat("a", 64))),
		"an output of no kind":                 outputs("spec.outputs[0]", &builderv1.Output{}),
		"an artifact's name, twice by default": outputs("spec.outputs[1].archive.artifact", archive(oci, ""), archive(docker, "image.tar")),
		"an archive and a tree of one name":    outputs("spec.outputs[1].local.artifact", archive(oci, "a"), local("a")),
		"an archive's tag": outputs("spec.outputs[0].archive.tags[0]", &builderv1.Output{Kind: &builderv1.Output_Archive{
			Archive: &builderv1.ArchiveOutput{Format: oci, Tags: []string{"UPPER"}},
		}}),
		"docker archive of two platforms": {"spec.outputs[2].archive.format", func(s *builderv1.BuildSpec) { s.Outputs = append(s.Outputs, archive(docker, "")) }},
		"annotations of no image": {"spec.annotations", func(s *builderv1.BuildSpec) {
			s.Outputs, s.Annotations = []*builderv1.Output{local("")}, map[string]string{"a": "b"}
		}},
		"an annotation's name": {"spec.annotations", func(s *builderv1.BuildSpec) { s.Annotations = map[string]string{"a b": "c"} }},
		"attestations of no image": {"spec.attestations", func(s *builderv1.BuildSpec) {
			s.Outputs, s.Attestations = []*builderv1.Output{local("")}, &builderv1.Attestations{Sbom: true}
		}},
		"attestations in a docker archive": {"spec.outputs[0].archive.format", func(s *builderv1.BuildSpec) {
			s.Outputs, s.Platforms = []*builderv1.Output{archive(docker, "")}, nil
			s.Attestations = &builderv1.Attestations{Provenance: builderv1.ProvenanceMode_PROVENANCE_MODE_MIN}
		}},
		"a generator of nothing": {"spec.attestations.sbom_generator", func(s *builderv1.BuildSpec) { s.Attestations = &builderv1.Attestations{SbomGenerator: "a"} }},
		"a generator": {"spec.attestations.sbom_generator", func(s *builderv1.BuildSpec) {
			s.Attestations = &builderv1.Attestations{Sbom: true, SbomGenerator: "A B"}
		}},
	}
}

func cacheRefusals() map[string]refusal {
	cache := func(field string, policy *builderv1.CachePolicy) refusal {
		return refusal{field, func(s *builderv1.BuildSpec) { s.Cache = policy }}
	}
	twice := explicit(nil, entry("registry", "ref", "a/b"))
	twice.Exports = append(twice.Exports, entry("registry", "ref", "a/b"))
	return map[string]refusal{
		"scope without mode":     cache("spec.cache.scope", &builderv1.CachePolicy{Scope: "a"}),
		"entries, wrong mode":    {"spec.cache.imports", func(s *builderv1.BuildSpec) { s.Cache.Imports = []*builderv1.CacheEntry{entry("local")} }},
		"a type":                 cache("spec.cache.imports[0].type", explicit(entry("nfs"), nil)),
		"import of inline":       cache("spec.cache.imports[0].type", explicit(entry("inline"), nil)),
		"registry without ref":   cache(`spec.cache.imports[0].attributes["ref"]`, explicit(entry("registry"), nil)),
		"registry, a bad ref":    cache(`spec.cache.exports[0].attributes["ref"]`, explicit(nil, entry("registry", "ref", "A B"))),
		"local, a relative path": cache(`spec.cache.imports[0].attributes["src"]`, explicit(entry("local", "src", "a"), nil)),
		"local, no path":         cache(`spec.cache.exports[0].attributes["dest"]`, explicit(nil, entry("local", "src", "/a"))),
		"a mode":                 cache(`spec.cache.exports[0].attributes["mode"]`, explicit(nil, entry("registry", "ref", "a/b", "mode", "most"))),
		"ignore-error":           cache(`spec.cache.exports[0].attributes["ignore-error"]`, explicit(nil, entry("s3", "ignore-error", "perhaps"))),
		"a credential":           cache(`spec.cache.exports[0].attributes["secret_access_key"]`, explicit(nil, entry("s3", "bucket", "b", "secret_access_key", "pw"))),
		"an export twice":        cache("spec.cache.exports[1]", twice),
		"inline, nothing pushed": {"spec.cache.mode", func(s *builderv1.BuildSpec) {
			s.Outputs, s.Cache = nil, &builderv1.CachePolicy{Mode: builderv1.CacheMode_CACHE_MODE_INLINE}
		}},
		"inline export, no image": {"spec.cache.exports[0].type", func(s *builderv1.BuildSpec) { s.Outputs, s.Cache = nil, explicit(nil, entry("inline")) }},
	}
}

func optionRefusals(t *testing.T) map[string]refusal {
	key := privateKey(t)
	attribute := func(name string) refusal {
		return refusal{`spec.frontend.attributes["` + name + `"]`, func(s *builderv1.BuildSpec) {
			s.Frontend = &builderv1.Frontend{Name: "dockerfile.v0", Attributes: map[string]string{name: ""}}
		}}
	}
	limits := func(field string, all ...*builderv1.Ulimit) refusal {
		return refusal{field, func(s *builderv1.BuildSpec) { s.Ulimits = all }}
	}
	all := map[string]refusal{
		"no spec's field": {"spec.context", func(s *builderv1.BuildSpec) { s.Definition = []byte("x") }},
		"a secret twice":  {"spec.secrets[1].id", func(s *builderv1.BuildSpec) { s.Secrets = []*builderv1.Secret{{Id: "a"}, {Id: "a"}} }},
		"a secret's id":   {"spec.secrets[0].id", func(s *builderv1.BuildSpec) { s.Secrets = []*builderv1.Secret{{Id: "a,b"}} }},
		"secrets that are large together": {"spec.secrets", func(s *builderv1.BuildSpec) {
			s.Secrets = []*builderv1.Secret{{Id: "a", Value: make([]byte, 512_000)}, {Id: "b", Value: []byte("x")}}
		}},
		"a key twice": {"spec.ssh_keys[1].id", func(s *builderv1.BuildSpec) {
			s.SshKeys = []*builderv1.SshKey{{PrivateKey: key}, {Id: "default", PrivateKey: key}}
		}},
		"no key":                  {"spec.ssh_keys[0].private_key", func(s *builderv1.BuildSpec) { s.SshKeys = []*builderv1.SshKey{{PrivateKey: []byte("pw")}} }},
		"a key with a passphrase": {"spec.ssh_keys[0].private_key", func(s *builderv1.BuildSpec) { s.SshKeys = []*builderv1.SshKey{{PrivateKey: lockedKey(t)}} }},
		"several stages in one":   {"spec.no_cache_stages[0]", func(s *builderv1.BuildSpec) { s.NoCacheStages = []string{"a,b"} }},
		"a host's name":           {`spec.extra_hosts["a=b"]`, func(s *builderv1.BuildSpec) { s.ExtraHosts = map[string]string{"a=b": "::1"} }},
		"a host's address":        {`spec.extra_hosts["a"]`, func(s *builderv1.BuildSpec) { s.ExtraHosts = map[string]string{"a": "fe80::1%eth0"} }},
		"host network":            {"spec.network", func(s *builderv1.BuildSpec) { s.Network = builderv1.NetworkMode_NETWORK_MODE_HOST }},
		"a limit's name":          limits("spec.ulimits[0].name", &builderv1.Ulimit{Name: "files"}),
		"a limit twice":           limits("spec.ulimits[1].name", &builderv1.Ulimit{Name: "nofile"}, &builderv1.Ulimit{Name: "nofile"}),
		"soft above hard":         limits("spec.ulimits[0].soft", &builderv1.Ulimit{Name: "nofile", Soft: 2, Hard: 1}),
		"soft without end":        limits("spec.ulimits[0].soft", &builderv1.Ulimit{Name: "nofile", Soft: -1, Hard: 1}),
		"a gateway of no image":   {`spec.frontend.attributes["source"]`, func(s *builderv1.BuildSpec) { s.Frontend = &builderv1.Frontend{Name: "gateway.v0"} }},
		"a gateway's image": {`spec.frontend.attributes["source"]`, func(s *builderv1.BuildSpec) {
			s.Frontend = &builderv1.Frontend{Name: "gateway.v0", Attributes: map[string]string{"source": "A B"}}
		}},
		"a policy that is no JSON":     {"spec.source_policy_json", func(s *builderv1.BuildSpec) { s.SourcePolicyJson = "{" }},
		"a policy that is no object":   {"spec.source_policy_json", func(s *builderv1.BuildSpec) { s.SourcePolicyJson = "[]" }},
		"an argument of another field": {`spec.build_args["SOURCE_DATE_EPOCH"]`, func(s *builderv1.BuildSpec) { s.BuildArgs = map[string]string{"SOURCE_DATE_EPOCH": "1"} }},
		"an SBOM generator by argument": {`spec.build_args["BUILDKIT_ATTEST_SBOM"]`, func(s *builderv1.BuildSpec) {
			s.BuildArgs = map[string]string{"BUILDKIT_ATTEST_SBOM": "generator=evil"}
		}},
	}
	for _, name := range []string{
		"context", "filename", "target", "build-arg:A", "label:a", "platform", "no-cache", "image-resolve-mode", "add-hosts",
		"force-network-mode", "shm-size", "ulimit", "context:a", "attest:sbom", "cache-imports", "cmdline", "source", "local-sessionid:context",
	} {
		all["attribute "+name] = attribute(name)
	}
	return all
}

func TestSpecRefuses(t *testing.T) {
	for _, group := range []map[string]refusal{contextRefusals(), outputRefusals(), cacheRefusals(), optionRefusals(t)} {
		for name, tc := range group {
			t.Run(name, func(t *testing.T) {
				spec := valid()
				tc.change(spec)
				_, err := translator.Spec(spec)
				var refused *fault.Error
				if !errors.As(err, &refused) {
					t.Fatalf("err = %v, want a fault", err)
				}
				if refused.Kind != fault.InvalidArgument || refused.Field != tc.field || refused.Remedy == "" {
					t.Errorf("kind %v, field %q, remedy %q; want InvalidArgument, %q and a remedy", refused.Kind, refused.Field, refused.Remedy, tc.field)
				}
				if said := refused.Error() + refused.Value; strings.Contains(said, "pw") || strings.Contains(said, "PRIVATE KEY") {
					t.Error("the refusal shows a secret")
				}
			})
		}
	}
}

// What beside a graph is for a Dockerfile is refused by its name.
func TestDefinitionStandsAlone(t *testing.T) {
	for field, change := range map[string]func(*builderv1.BuildSpec){
		"dockerfile":     func(s *builderv1.BuildSpec) { s.Dockerfile = text("FROM a") },
		"build_args":     func(s *builderv1.BuildSpec) { s.BuildArgs = map[string]string{"A": "b"} },
		"named_contexts": func(s *builderv1.BuildSpec) { s.NamedContexts = map[string]*builderv1.Context{"a": inline()} },
		"pull":           func(s *builderv1.BuildSpec) { s.Pull = true },
		"frontend":       func(s *builderv1.BuildSpec) { s.Frontend = &builderv1.Frontend{Name: "dockerfile.v0"} },
		"cache.mode": func(s *builderv1.BuildSpec) {
			s.Cache = &builderv1.CachePolicy{Mode: builderv1.CacheMode_CACHE_MODE_NONE}
		},
	} {
		spec := &builderv1.BuildSpec{Definition: []byte("x"), Outputs: []*builderv1.Output{push("a")}}
		change(spec)
		_, err := translator.Spec(spec)
		var refused *fault.Error
		if !errors.As(err, &refused) || refused.Field != "spec."+field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestSpecTranslates(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*builderv1.BuildSpec)
		got    func(build.Spec) any
		want   any
	}{
		"named contexts, as BuildKit looks them up": {
			func(s *builderv1.BuildSpec) {
				s.NamedContexts = map[string]*builderv1.Context{
					"docker.io/library/alpine:latest": {Kind: &builderv1.Context_Image{Image: &builderv1.ImageContext{Reference: "alpine:3"}}},
				}
			},
			func(s build.Spec) any { return s.NamedContexts },
			map[string]build.Context{"alpine": {Image: &build.ImageContext{Reference: "docker.io/library/alpine:3"}}},
		},
		"artifacts by default": {
			func(s *builderv1.BuildSpec) { s.Outputs = []*builderv1.Output{archive(oci, ""), local("")} },
			func(s build.Spec) any { return s.Outputs },
			[]build.Output{{Archive: &build.ArchiveOutput{OCI: true, Artifact: "image.tar"}}, {Local: &build.LocalOutput{Artifact: "files.tar"}}},
		},
		"inline cache": {
			func(s *builderv1.BuildSpec) {
				s.Outputs, s.Cache = []*builderv1.Output{push("r.example/a:1")}, &builderv1.CachePolicy{Mode: builderv1.CacheMode_CACHE_MODE_INLINE}
			},
			func(s build.Spec) any { return s.Cache },
			build.Cache{
				Exports: []build.CacheEntry{{Type: "inline"}},
				Imports: []build.CacheEntry{{Type: "registry", Attributes: map[string]string{"ref": "r.example/a:1"}}},
			},
		},
		"no cache": {
			func(s *builderv1.BuildSpec) {
				s.Cache = &builderv1.CachePolicy{Mode: builderv1.CacheMode_CACHE_MODE_NONE}
			},
			func(s build.Spec) any { return s.NoCache }, true,
		},
		"host network": {
			func(s *builderv1.BuildSpec) {
				s.Network, s.Entitlements = builderv1.NetworkMode_NETWORK_MODE_HOST, []builderv1.Entitlement{builderv1.Entitlement_ENTITLEMENT_NETWORK_HOST}
			},
			func(s build.Spec) any { return []any{s.Network, s.Entitlements} }, []any{"host", []string{"network.host"}},
		},
		"limits without end": {
			func(s *builderv1.BuildSpec) { s.Ulimits = []*builderv1.Ulimit{{Name: "core", Soft: 5, Hard: -1}} },
			func(s build.Spec) any { return s.Ulimits }, []build.Ulimit{{Name: "core", Soft: 5, Hard: -1}},
		},
		"hosts": {
			func(s *builderv1.BuildSpec) { s.ExtraHosts = map[string]string{"DB.Internal": "FD00:0::1"} },
			func(s build.Spec) any { return s.ExtraHosts }, map[string]string{"db.internal": "fd00::1"},
		},
		"low priority": {
			func(s *builderv1.BuildSpec) { s.Priority = builderv1.Priority_PRIORITY_LOW },
			func(s build.Spec) any { return s.Priority }, -1,
		},
		"a key's id": {
			func(s *builderv1.BuildSpec) { s.SshKeys = []*builderv1.SshKey{{PrivateKey: privateKey(t)}} },
			func(s build.Spec) any { return s.SSHKeys[0].ID }, "default",
		},
		"SBOM generator": {
			func(s *builderv1.BuildSpec) {
				s.Attestations = &builderv1.Attestations{Sbom: true, SbomGenerator: "a/scan"}
			},
			func(s build.Spec) any { return s.Attestations }, build.Attestations{SBOM: true, SBOMGenerator: "docker.io/a/scan:latest"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := valid()
			tc.change(in)
			spec, err := translator.Spec(in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := gocmp.Diff(tc.want, tc.got(spec)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
