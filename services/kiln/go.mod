module github.com/kilnbuild/kiln/services/kiln

go 1.26.8

replace github.com/kilnbuild/kiln/proto => ../../proto

replace github.com/kilnbuild/kiln/pkg => ../../pkg

replace github.com/kilnbuild/kiln/services/builder => ../builder

replace github.com/kilnbuild/kiln/services/cachemanager => ../cachemanager

replace github.com/kilnbuild/kiln/services/janitor => ../janitor
