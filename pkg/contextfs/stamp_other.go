//go:build !linux

package contextfs

import "io/fs"

// identityOf knows no identity: files are told apart by size, mode and time.
func identityOf(fs.FileInfo) (identity, bool) { return identity{}, false }
