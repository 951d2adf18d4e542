module github.com/kilnbuild/kiln/services/cachemanager

go 1.26.8

replace github.com/kilnbuild/kiln/proto => ../../proto

replace github.com/kilnbuild/kiln/pkg => ../../pkg
