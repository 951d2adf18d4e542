package contextstore

import "context"

// reserve takes bytes for an archive that is being unpacked, and makes room for them
// when there is none.
func (st *stage) reserve(ctx context.Context, bytes int64) error {
	s := st.store
	if err := s.ensureCounted(ctx); err != nil {
		return err
	}
	if st.grant.Take(bytes) {
		return nil
	}
	want := demand{st.project, bytes + s.slack}
	if _, _, some := s.victim(want); some {
		if _, err := s.sweep(ctx, want); err != nil {
			return err
		}
	}
	if st.grant.Take(bytes) {
		return nil
	}
	return s.account.Full(st.project, "contexts", "contexts.project_bytes", "contexts.keep_bytes")
}

// ensureCounted counts the store when no sweep has since it was opened.
func (s *Store) ensureCounted(ctx context.Context) error {
	s.mu.Lock()
	counted := s.counted
	s.mu.Unlock()
	if counted {
		return nil
	}
	s.change.Lock()
	defer s.change.Unlock()
	t, err := s.count(ctx)
	if err != nil {
		return err
	}
	s.settle(t)
	return nil
}

// Pin keeps a context of a project until the returned function is called: from the
// acceptance of a build to its end, however long it waits. The error is a NOT_FOUND
// fault when the project has no such context.
func (s *Store) Pin(project, digest string) (unpin func(), err error) {
	d, _, err := s.use(project, digest, 1)
	if err != nil {
		return nil, err
	}
	return func() { s.letGo(d) }, nil
}
