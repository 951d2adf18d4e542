package inventory

import "github.com/kilnbuild/kiln/services/janitor/internal/content"

// Missing is the number of what is not stored.
const Missing int32 = -1

// Number gives numbers to what manifests reach, where the storage has given none.
func (r *Registry) Number() {
	if len(r.Bytes) > 0 {
		return
	}
	numbers := map[content.Blob]int32{} // by what they are, without their bytes
	for i := range r.Repositories {
		r.Repositories[i].Number(func(b content.Blob) int32 {
			bytes := b.Bytes
			b.Bytes = 0
			n, known := numbers[b]
			if !known {
				n = int32(len(numbers)) //nolint:gosec // there are fewer blobs than that
				numbers[b] = n
				r.Bytes = append(r.Bytes, 0)
			}
			r.Bytes[n] = bytes
			return n
		})
	}
}

// Number notes the number of each that manifests reach.
func (r *Repository) Number(one func(content.Blob) int32) {
	total := 0
	for k := range r.Manifests {
		total += 1 + len(r.Manifests[k].Blobs)
	}
	all := make([]int32, 0, total)
	r.Reaches = make([][]int32, len(r.Manifests))
	for k := range r.Manifests {
		m, from := &r.Manifests[k], len(all)
		all = append(all, one(content.NewBlob(m.Digest, m.Bytes)))
		for _, b := range m.Blobs {
			all = append(all, one(b))
		}
		r.Reaches[k] = all[from:]
	}
}
