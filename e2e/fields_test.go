package e2e_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// fieldTests names the tests of each field of a request.
var fieldTests = map[string][]string{
	"project":            {"TestS3_CacheScopes", "TestRecordsOfBuilds"},
	"context":            {"TestFieldContext", "TestDirectoryContext", "TestGitContext", "TestHTTPContext", "TestUploadedContext", "TestOCILayoutsAreGuarded"},
	"dockerfile":         {"TestDirectoryContext", "TestFieldContext"},
	"target":             {"TestTargetArgumentsAndLabels", "TestUnknownTarget"},
	"build_args":         {"TestTargetArgumentsAndLabels"},
	"labels":             {"TestTargetArgumentsAndLabels"},
	"annotations":        {"TestFieldAnnotations"},
	"platforms":          {"TestS10_TwoPlatformsInOneBuild"},
	"named_contexts":     {"TestFieldNamedContexts"},
	"secrets":            {"TestFieldSecrets"},
	"ssh_keys":           {"TestFieldSSHKeys"},
	"outputs":            {"TestFieldOutputsRegistry", "TestFieldOutputsArtifacts"},
	"cache":              {"TestFieldCache"},
	"attestations":       {"TestFieldAttestations"},
	"no_cache":           {"TestS2_UnchangedBuildIsCached"},
	"no_cache_stages":    {"TestFieldNoCacheStages"},
	"pull":               {"TestFieldPull"},
	"extra_hosts":        {"TestFieldExtraHosts"},
	"network":            {"TestFieldNetwork"},
	"shm_size_bytes":     {"TestFieldShmSizeBytes"},
	"ulimits":            {"TestFieldUlimits"},
	"entitlements":       {"TestFieldEntitlements"},
	"frontend":           {"TestFieldFrontend"},
	"definition":         {"TestFieldDefinition"},
	"timeout":            {"TestTimeout"},
	"priority":           {"TestLimitsAndPriorities"},
	"source_policy_json": {"TestFieldSourcePolicyJSON"},
	"source_date_epoch":  {"TestFieldSourceDateEpoch"},
	"retry":              {"TestRetryPolicyOutlivesTheDaemon"},
}

// Every field of the contract has a test against real daemons, and every test that
// is named for one is there.
func TestEveryFieldHasATest(t *testing.T) {
	tests := make(map[string]bool)
	for _, file := range labtest.Must(filepath.Glob("*_test.go"))(t) {
		parsed := labtest.Must(parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution))(t)
		for _, decl := range parsed.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil {
				tests[f.Name.Name] = true
			}
		}
	}
	fields := (&builderv1.BuildSpec{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		name := string(fields.Get(i).Name())
		if len(fieldTests[name]) == 0 {
			t.Errorf("the field %s of BuildSpec has no test", name)
		}
		for _, test := range fieldTests[name] {
			if !tests[test] {
				t.Errorf("there is no %s, which is to test the field %s", test, name)
			}
		}
	}
}
