package grpcapi_test

import (
	"testing"

	"github.com/kilnbuild/kiln/pkg/pagetoken"
	"github.com/kilnbuild/kiln/pkg/testkit"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/grpcapi"
)

func TestEveryList_HasSealedPages(t *testing.T) {
	server := grpcapi.NewServer(nil, nil, translator, nil, nil, pagetoken.EphemeralTokens())
	service := builderv1.File_kiln_builder_v1_builder_service_proto.Services().ByName("BuilderService")
	// Daemons are those of the configuration, and few.
	testkit.SealedPages(t, service, &builderv1.BuilderService_ServiceDesc, server, "ListDaemons")
}
