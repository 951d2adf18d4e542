package grpcapi_test

import (
	"testing"

	"github.com/kilnbuild/kiln/pkg/pagetoken"
	"github.com/kilnbuild/kiln/pkg/testkit"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/grpcapi"
)

func TestEveryList_HasSealedPages(t *testing.T) {
	server := grpcapi.NewServer(grpcapi.Options{Pages: pagetoken.EphemeralTokens()})
	service := janitorv1.File_kiln_janitor_v1_janitor_service_proto.Services().ByName("JanitorService")
	testkit.SealedPages(t, service, &janitorv1.JanitorService_ServiceDesc, server)
}
