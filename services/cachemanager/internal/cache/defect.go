package cache

// DefectKind is what is wrong in a type=local directory.
type DefectKind string

// The kinds of defects.
const (
	CorruptBlob   DefectKind = "CORRUPT_BLOB"   // the bytes do not have the digest
	MissingBlob   DefectKind = "MISSING_BLOB"   // a manifest names it, and it is not there
	BadIndex      DefectKind = "BAD_INDEX"      // index.json cannot be read
	BadManifest   DefectKind = "BAD_MANIFEST"   // a manifest cannot be read
	Orphan        DefectKind = "ORPHAN"         // nothing reaches the blob
	AbortedIngest DefectKind = "ABORTED_INGEST" // a download that never ended
	Foreign       DefectKind = "FOREIGN"        // a file that does not belong there, or cannot be read
)

// Defect is something that is wrong in a type=local directory.
type Defect struct {
	Kind    DefectKind
	Digest  string   // of the blob; empty: not of one
	Tags    []string // that reach the blob, sorted
	Message string
	Remedy  string
	Bytes   int64 // of the blob on the disk
}

// VerifyProgress is how far a check of a directory has come.
type VerifyProgress struct {
	Blobs, TotalBlobs int64
	Bytes, TotalBytes int64
	Defects           int64
}
