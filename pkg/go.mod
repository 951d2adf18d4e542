module github.com/kilnbuild/kiln/pkg

go 1.26.8

replace github.com/kilnbuild/kiln/proto => ../proto
