package storetest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// The process that is killed gets its directory and the number of the round in
// its environment.
const (
	victimDir   = "KILN_STORETEST_VICTIM_DIR"
	victimRound = "KILN_STORETEST_VICTIM_ROUND"
)

func isVictim() bool { return os.Getenv(victimDir) != "" }

// killed kills the process of a store in the middle of writing, some times over
// on the same directory. What the store had returned from is there, and what is
// there is whole.
func (s suite) killed(t *testing.T) {
	dir := t.TempDir()
	top, _, _ := strings.Cut(t.Name(), "/")
	for round := range 8 {
		acknowledged := runVictim(t, top, dir, round)
		if len(acknowledged) == 0 {
			t.Fatal("the process wrote nothing before it was killed")
		}
		store := s.open(t, dir)
		for _, rec := range pages(t, store, build.Query{}, 1000) {
			isWhole(t, store, rec)
		}
		for id, ack := range acknowledged {
			rec := get(t, store, id)
			if rec.LastSeq < ack.last || ack.state.Final() && rec.State != ack.state {
				t.Errorf("%s is %s with %d frames; it was %s with %d", id, rec.State, rec.LastSeq, ack.state, ack.last)
			}
		}
		closeStore(t, store)
	}
}

// isWhole fails the test when a build has a record of one commit and frames of
// another.
func isWhole(t *testing.T, store build.Store, rec build.Record) {
	t.Helper()
	if rec.Steps.Completed != int(rec.LastSeq) { //nolint:gosec // a small count
		t.Errorf("%s has a record of %d frames, and %d frames", rec.ID, rec.Steps.Completed, rec.LastSeq)
	}
	sameFrames(t, rec.ID, allFrames(t, store, rec.ID, 1, 1000), frames(rec.ID, 1, rec.LastSeq))
	if request, err := store.Request(t.Context(), rec.ID); err != nil || string(request) != "of "+rec.ID {
		t.Errorf("%s has the request %q, error %v", rec.ID, request, err)
	}
}

type acknowledgement struct {
	last  uint64
	state build.State
}

// runVictim starts the test in a process of its own, which writes builds, and
// kills it. It returns what that process was told to be written, by build.
func runVictim(t *testing.T, test, dir string, round int) map[string]acknowledgement {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	victim := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+test+"$") //nolint:gosec // this very binary
	victim.Env = append(os.Environ(), victimDir+"="+dir, fmt.Sprintf("%s=%d", victimRound, round))
	victim.Stderr = os.Stderr
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	acknowledged := make(map[string]acknowledgement)
	lines := bufio.NewReader(out)
	for n := 0; ; n++ {
		line, err := lines.ReadString('\n')
		if err != nil {
			break // A line that is cut short was not said.
		}
		var id string
		var ack acknowledgement
		if _, err := fmt.Sscanf(line, "%s %d %d\n", &id, &ack.last, &ack.state); err != nil {
			t.Fatalf("the process says %q", line)
		}
		acknowledged[id] = ack
		if n == 0 {
			time.AfterFunc(rand.N(200*time.Millisecond), func() { _ = victim.Process.Kill() }) //nolint:gosec // any moment will do
		}
	}
	if err := victim.Wait(); err == nil || victim.ProcessState.Exited() {
		t.Fatalf("the process ended by itself: %v", err)
	}
	return acknowledged
}

// writeUntilKilled is what that process does: four writers take builds to their
// ends, one after another, and say after each call what was written.
func writeUntilKilled(t *testing.T, open func(t *testing.T, dir string) build.Store) {
	store := open(t, os.Getenv(victimDir))
	said := &syncWriter{to: os.Stdout}
	var writers sync.WaitGroup
	for i := range 4 {
		writers.Go(func() {
			for n := 0; ; n++ {
				if err := writeOne(t.Context(), store, fmt.Sprintf("b%s-%d-%d", os.Getenv(victimRound), i, n), said); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()
}

// writeOne takes one build to its end, in some commits of some frames.
func writeOne(ctx context.Context, store build.Store, id string, said io.Writer) error {
	rec := queued(id)
	_, created, err := store.Create(ctx, rec, []byte("of "+id))
	if err != nil || !created {
		return errors.Join(err, fmt.Errorf("%s: created %t", id, created))
	}
	last := uint64(0)
	for commits := rand.N(20); ; commits-- { //nolint:gosec // any number will do
		if _, err := fmt.Fprintf(said, "%s %d %d\n", id, last, rec.State); err != nil {
			return err
		}
		if rec.State.Final() {
			return nil
		}
		if commits <= 0 {
			rec = ended(rec, build.Failed, start)
		}
		first := last + 1
		last += rand.Uint64N(30)        //nolint:gosec // any number will do
		rec.Steps.Completed = int(last) //nolint:gosec // a small count
		if err := store.Commit(ctx, rec, frames(id, first, last)); err != nil {
			return err
		}
	}
}

// syncWriter takes writes of several goroutines, one after another.
type syncWriter struct {
	mu sync.Mutex
	to io.Writer
}

// Write implements io.Writer.
func (w *syncWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.to.Write(p)
}
