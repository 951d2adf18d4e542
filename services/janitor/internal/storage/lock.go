package storage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/filelock"
)

// ownDir is where the janitor keeps its things, below the root and beside the registry's,
// so that a rename moves between the two.
const ownDir = "kiln-janitor"

// holder is what the holder of the lock writes to its file again and again.
type holder struct {
	ID   string `json:"id"`   // of the process
	Boot string `json:"boot"` // of the kernel that it runs on
	Host string `json:"host"`
	Run  string `json:"run"`
	Beat int64  `json:"beat"`
}

// How often the holder shows that it is alive, and for how long another host looks.
const (
	beatEvery = 2 * time.Second
	watchFor  = 5 * beatEvery
)

// self names this process.
var self = uuid.NewString()

// Lock makes this process the only one that runs on the storage, also among hosts that
// share it: the kernel's lock tells of those on this host, and the heart beat in the file
// of the others, where the file system shares no locks. The context that it returns ends
// when the lock is lost. Taken, it is an ALREADY_EXISTS fault.
func (s *Storage) Lock(ctx context.Context, run string) (held context.Context, unlock func(), err error) {
	if err := os.MkdirAll(s.own(), 0o750); err != nil {
		return nil, nil, denied(err)
	}
	file, err := filelock.TryLock(s.own("lock"))
	if errors.Is(err, filelock.ErrLocked) {
		other, _ := readHolder(s.own("lock"))
		return nil, nil, taken(other)
	}
	if err != nil {
		return nil, nil, denied(err)
	}
	me := holder{ID: self, Boot: bootID(), Run: run, Beat: 1}
	me.Host, _ = os.Hostname() // for people
	if err = s.await(ctx, me); err == nil {
		err = writeHolder(file, me)
	}
	if err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	held, cancel := context.WithCancelCause(ctx)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.beat(held, cancel, file, me)
	}()
	return held, func() {
		cancel(nil)
		<-stopped
		if is, err := readHolder(s.own("lock")); err == nil && is.ID == me.ID { // else another one has it
			_ = file.Truncate(0) // says that it was let go; without it others look for a while
		}
		_ = file.Close()
	}, nil
}

// await waits until a holder on another host has shown that it is gone. One of this host
// is: the kernel gave its lock away.
func (s *Storage) await(ctx context.Context, me holder) error {
	was, err := readHolder(s.own("lock"))
	if err != nil || was.ID == "" || was.Boot == me.Boot && me.Boot != "" {
		return err
	}
	select {
	case <-time.After(watchFor):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	is, err := readHolder(s.own("lock"))
	if err == nil && is != was && is.ID != "" {
		return taken(is)
	}
	return err
}

// beat shows that the holder is alive until ctx ends, and ends it when another one has
// taken its place.
func (s *Storage) beat(ctx context.Context, lost context.CancelCauseFunc, file *os.File, me holder) {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if is, err := readHolder(s.own("lock")); err != nil || is.ID != me.ID {
			lost(fault.New(fault.Aborted, "INTERRUPTED", fmt.Sprintf("the lock of the registry's storage was lost: %v has it", is), "let one janitor alone keep this storage"))
			return
		}
		me.Beat++
		if err := writeHolder(file, me); err != nil {
			lost(err)
			return
		}
	}
}

func readHolder(path string) (h holder, err error) {
	raw, err := os.ReadFile(path)
	if err != nil || len(bytes.TrimSpace(raw)) == 0 {
		return holder{}, err
	}
	if json.Unmarshal(raw, &h) != nil {
		return holder{}, nil //nolint:nilerr // half written by one that was killed
	}
	return h, nil
}

func writeHolder(file *os.File, h holder) error {
	raw, err := json.Marshal(h)
	if err != nil {
		return err
	}
	raw = append(raw, '\n')
	if _, err := file.WriteAt(raw, 0); err != nil {
		return denied(err)
	}
	return file.Truncate(int64(len(raw)))
}

func taken(by holder) error {
	err := fault.New(fault.AlreadyExists, "ALREADY_EXISTS", fmt.Sprintf("a run on the registry's storage is under way on %s", orUnknown(by.Host)),
		"wait for its end, watch it with GetRun, or end it with CancelRun")
	err.Metadata = map[string]string{"run_id": by.Run}
	return err
}

func orUnknown(host string) string {
	if host == "" {
		return "another host"
	}
	return host
}

func bootID() string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}

// own is a path among the janitor's things.
func (s *Storage) own(elements ...string) string {
	return filepath.Join(append([]string{s.root, ownDir}, elements...)...)
}

// denied is that the storage cannot be written to.
func denied(err error) error {
	return fault.Wrap(err, fault.Unavailable, "REGISTRY_UNAVAILABLE", "the registry's storage cannot be written to",
		"give the janitor's user write access to registry.storage_root, and see that its disk is neither full nor read-only")
}

// syncDir makes renames in a directory last over a loss of power.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
