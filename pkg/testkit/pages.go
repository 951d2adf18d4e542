package testkit

import (
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// SealedPages checks every list of a service: a method whose request has a page_token
// answers a token that it did not give with INVALID_ARGUMENT, before it does anything
// else, and its answer has a next_page_token. A method named List… has pages, unless it
// is one of those that are whole. So a list that is added is looked at, too.
//
// The server needs nothing but what seals its tokens.
func SealedPages(t *testing.T, service protoreflect.ServiceDescriptor, desc *grpc.ServiceDesc, server any, whole ...string) {
	t.Helper()
	for _, method := range desc.Methods {
		of := service.Methods().ByName(protoreflect.Name(method.MethodName))
		token := of.Input().Fields().ByName("page_token")
		switch {
		case token == nil && strings.HasPrefix(method.MethodName, "List") && !slices.Contains(whole, method.MethodName):
			t.Errorf("%s has no pages, and is not one of the lists that are whole", method.MethodName)
		case token == nil:
			continue
		case of.Output().Fields().ByName("next_page_token") == nil:
			t.Errorf("%s has no next_page_token", method.MethodName)
		}
		for _, text := range []string{"7", `{"From":7}`, `{"Started":1,"ID":"a"}`, `{"Digest":"sha256:00","From":1,"Size":1}`, "1.2.3"} {
			forged := base64.RawURLEncoding.EncodeToString([]byte(text))
			_, err := method.Handler(server, context.Background(), func(request any) error {
				request.(proto.Message).ProtoReflect().Set(token, protoreflect.ValueOfString(forged)) //nolint:forcetypeassert // gRPC's
				return nil
			}, nil)
			if f, ok := errors.AsType[*fault.Error](err); !ok || f.Kind != fault.InvalidArgument || f.Field != "page_token" {
				t.Errorf("%s takes a token that holds %s: %v", method.MethodName, text, err)
			}
		}
	}
}
