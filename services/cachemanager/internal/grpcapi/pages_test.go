package grpcapi_test

import (
	"testing"

	"github.com/kilnbuild/kiln/pkg/pagetoken"
	"github.com/kilnbuild/kiln/pkg/testkit"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/grpcapi"
)

func TestEveryList_HasSealedPages(t *testing.T) {
	server := grpcapi.NewServer(grpcapi.Options{Pages: pagetoken.EphemeralTokens()})
	service := cachemanagerv1.File_kiln_cachemanager_v1_cache_manager_service_proto.Services().ByName("CacheManagerService")
	testkit.SealedPages(t, service, &cachemanagerv1.CacheManagerService_ServiceDesc, server)
}
