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
	"golang.org/x/sys/unix"

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
	PID  int    `json:"pid,omitempty"`
	Pids string `json:"pids,omitempty"` // the namespace that this is of
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
// share it. The context that it returns ends when the lock is lost. Taken, it is an
// ALREADY_EXISTS fault.
func (s *Storage) Lock(ctx context.Context, run string) (held context.Context, unlock func(), err error) {
	return s.files.lock(ctx, s.own("lock"), run)
}

// heart is where the holder of a lock shows that it is alive.
type heart struct {
	load  func() (holder, error)
	store func(holder) error
}

// newHolder is this process as the holder of a lock.
func newHolder(run string) holder {
	me := holder{ID: self, Boot: bootID(), Run: run, Beat: 1, PID: os.Getpid()}
	me.Host, _ = os.Hostname() // for people
	me.Pids, _ = os.Readlink("/proc/self/ns/pid")
	return me
}

// dead reports that this kernel knows the holder to have ended. A process that has got its
// number since is taken for it.
func (h holder) dead(me holder) bool {
	same := h.Boot == me.Boot && h.Pids == me.Pids && h.Boot != "" && h.Pids != "" && h.PID > 0
	return same && (h.PID == me.PID && h.ID != me.ID || errors.Is(unix.Kill(h.PID, 0), unix.ESRCH))
}

// lock takes the kernel's lock, which tells of those on this host, and then the heart's, for
// hosts whose file system shares no locks.
func (d *disk) lock(ctx context.Context, path, run string) (held context.Context, unlock func(), err error) {
	var file *os.File
	err = d.withRoom(func() (err error) {
		if err = os.MkdirAll(filepath.Dir(path), 0o750); err == nil {
			file, err = filelock.TryLock(path)
		}
		return err
	})
	if errors.Is(err, filelock.ErrLocked) {
		other, _ := readHolder(path)
		return nil, nil, taken(other)
	}
	if err != nil {
		return nil, nil, denied(err)
	}
	h := heart{
		load:  func() (holder, error) { return readHolder(path) },
		store: func(me holder) error { return d.withRoom(func() error { return writeHolder(file, me) }) },
	}
	if err := d.probe(); err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	me := newHolder(run)
	// One of this host is gone: the kernel gave its lock away.
	if err = h.await(ctx, func(was holder) bool { return was.Boot == me.Boot && me.Boot != "" }); err == nil {
		err = h.store(me)
	}
	if err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	held, stop := h.keep(ctx, me)
	return held, func() {
		stop()
		if is, err := h.load(); err == nil && is.ID == me.ID { // else another one has it
			_ = writeLock(file, nil) // says that it was let go; without it others look for a while
		}
		_ = file.Close()
	}, nil
}

// await waits until a holder has shown that it is gone, if it is not known to be.
func (h heart) await(ctx context.Context, gone func(holder) bool) error {
	was, err := h.load()
	if err != nil || was.ID == "" || gone(was) {
		return err
	}
	if err := pause(ctx, watchFor); err != nil {
		return err
	}
	is, err := h.load()
	if err == nil && is != was && is.ID != "" {
		return taken(is)
	}
	return err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// keep shows that the holder is alive until it is stopped. The context that it returns ends
// when another one has taken its place.
func (h heart) keep(ctx context.Context, me holder) (held context.Context, stop func()) {
	held, cancel := context.WithCancelCause(ctx)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		h.beat(held, cancel, me)
	}()
	return held, func() {
		cancel(nil)
		<-stopped
	}
}

func (h heart) beat(ctx context.Context, lost context.CancelCauseFunc, me holder) {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if is, err := h.load(); err != nil || is.ID != me.ID {
			lost(fault.New(fault.Aborted, "INTERRUPTED", fmt.Sprintf("the lock of the registry's storage was lost: %v has it", is), "let one janitor alone keep this storage"))
			return
		}
		me.Beat++
		if err := h.store(me); err != nil {
			lost(err)
			return
		}
	}
}

func readHolder(path string) (holder, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return holder{}, err
	}
	return parseHolder(raw), nil
}

func parseHolder(raw []byte) (h holder) {
	if json.Unmarshal(raw, &h) != nil { // let go of, or half written by one that was killed
		return holder{}
	}
	return h
}

func writeHolder(file *os.File, h holder) error {
	raw, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return writeLock(file, raw)
}

// lockBytes is the size of the file of a lock, which does not change: to write it again takes no
// room of a file system that is full.
const lockBytes = 4096

// writeLock fills the file of a lock with a text and spaces.
func writeLock(file *os.File, text []byte) error {
	all := bytes.Repeat([]byte{' '}, lockBytes)
	all[copy(all[:lockBytes-1], text)] = '\n'
	if _, err := file.WriteAt(all, 0); err != nil {
		return denied(err)
	}
	return nil
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
		"give the janitor's user write access to it, and see that its disk is neither full nor read-only")
}
