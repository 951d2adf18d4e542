package check

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/canary"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

// Bounds beyond which a check is no longer OK.
const (
	slowLatency  = time.Second
	warnFreePart = 0.10
	failFreePart = 0.02
)

func failed(state State, err error, remedy string) Result {
	return Result{State: state, Message: err.Error(), Remedy: remedy}
}

// remedyOf is the remedy that the error names, and else the other one.
func remedyOf(err error, otherwise string) string {
	if f, ok := errors.AsType[*fault.Error](err); ok && f.Remedy != "" {
		return f.Remedy
	}
	return otherwise
}

func judgeReachable(address string, err error) Result {
	if err != nil {
		return failed(Fail, err, remedyOf(err, "start the registry, and check that it listens on "+address))
	}
	return Result{Message: "the registry answers at " + address}
}

func judgeAuth(user string, err error) Result {
	switch {
	case errors.Is(err, content.ErrDenied) && user == "":
		return failed(Fail, err, "set registry.username and registry.password_file")
	case errors.Is(err, content.ErrDenied):
		return failed(Fail, err, "check registry.username and the password in registry.password_file")
	case err != nil:
		return failed(Fail, err, remedyOf(err, "look at the registry's log"))
	case user == "":
		return Result{Message: "the registry lets the janitor in without credentials"}
	}
	return Result{Message: fmt.Sprintf("the registry lets the janitor in as %q", user)}
}

func judgeLatency(median time.Duration) Result {
	r := Result{Latency: &median, Message: "an answer takes " + median.Round(10*time.Microsecond).String()}
	if median > slowLatency {
		r.State, r.Remedy = Warn, "look at the load of the registry, its storage and the network"
	}
	return r
}

func judgeCatalog(repositories int, err error) Result {
	switch {
	case errors.Is(err, content.ErrDenied):
		return failed(Fail, err, "allow the janitor's user to read the catalogue (scope registry:catalog:*)")
	case errors.Is(err, content.ErrUnsupported), errors.Is(err, content.ErrNotFound):
		return failed(Fail, err, "use a registry, or a setting of it, that serves /v2/_catalog")
	case err != nil:
		return failed(Fail, err, remedyOf(err, "look at the registry's log"))
	}
	return Result{Repositories: &repositories, Message: fmt.Sprintf("repositories in the catalogue: %d", repositories)}
}

func judgeDelete(err error) Result {
	yes, no := true, false
	switch {
	case err == nil:
		return Result{DeleteEnabled: &yes, Message: "the registry allows manifests to be deleted"}
	case errors.Is(err, content.ErrUnsupported):
		r := failed(Fail, err, "set storage.delete.enabled: true in the registry's configuration, and no readonly mode, and restart it")
		r.DeleteEnabled = &no
		return r
	case errors.Is(err, content.ErrDenied):
		return failed(Fail, err, "allow the janitor's user to delete")
	}
	return failed(Unknown, err, remedyOf(err, "look at the registry's log"))
}

// errForeign says that a repository is not in the storage.
type errForeign struct{ repository string }

func (e errForeign) Error() string {
	return fmt.Sprintf("it does not have repository %q of the registry", e.repository)
}

// judgeDisk judges the storage below root; an empty root is out of reach. The
// other errors are those of reading the disk, and of comparing the storage with
// the registry.
func judgeDisk(root string, disk Disk, unread, foreign error) Result {
	switch {
	case root == "":
		return Result{
			State: Unknown, Message: "the registry's storage is out of reach",
			Remedy: "when the janitor can reach the storage, set registry.storage_root or registry.storage_config",
		}
	case unread != nil:
		return failed(Fail, fmt.Errorf("storage %s cannot be read: %w", root, unread), "let the janitor's user read it, and check registry.storage_root or registry.storage_config")
	case foreign != nil:
		return failed(Fail, fmt.Errorf("%s is not the registry's storage: %w", root, foreign),
			"set registry.storage_root to the registry's storage.filesystem.rootdirectory, or registry.storage_config to its configuration file")
	}
	if disk.Total == 0 {
		return Result{Message: root + " answers, and has no bound"}
	}
	free := float64(disk.Free) / float64(disk.Total)
	r := Result{Disk: &disk, Message: fmt.Sprintf("%s of %s are free (%.0f %%)", size(disk.Free), size(disk.Total), free*100)}
	switch {
	case free < failFreePart:
		r.State = Fail
	case free < warnFreePart:
		r.State = Warn
	}
	if r.State != OK {
		r.Remedy = "free space on the file system of " + root + ", or enlarge it"
	}
	return r
}

// size is bytes for people: "12.3 GB", where 1 GB is 10^9 bytes.
func size(bytes int64) string {
	value, unit := float64(bytes), 0
	units := [...]string{"B", "kB", "MB", "GB", "TB", "PB"}
	for value >= 999.5 && unit < len(units)-1 {
		value /= 1000
		unit++
	}
	precision := 1
	if unit == 0 || value >= 100 {
		precision = 0
	}
	return strconv.FormatFloat(value, 'f', precision, 64) + " " + units[unit]
}

// notifyRemedy is what makes notifications arrive.
const notifyRemedy = "name notifications.secret_file, and have the registry send notifications to the janitor's /registry-events with that secret: deploy/registry/config.yml shows how"

// pullsRemedy is what makes those of pulls arrive.
const pullsRemedy = "leave ignore.actions and ignoredmediatypes out of the endpoint of the janitor in the registry's configuration, " +
	"and configure the endpoint in each replica of the registry"

var errNoStorage = errors.New("it takes the registry's storage to find that out")

func judgeCache(found canary.Found, err error) Result {
	switch {
	case errors.Is(err, errNoStorage):
		return failed(Unknown, err, "set registry.storage_root or registry.storage_config where the janitor can reach it")
	case err != nil:
		return failed(Fail, err, remedyOf(err, "look at the registry's log"))
	case found.Caches:
		return Result{State: Warn, Message: "the registry remembers blobs that are gone (storage.cache.blobdescriptor): runs remove manifests and no blobs, or it would take pushes that cannot be pulled", Remedy: "leave storage.cache out of the registry's configuration: deploy/registry/config.yml is one that is safe"}
	}
	return Result{Message: "the registry looks for each blob in its storage"}
}

// slowNotifications is what notifications may take.
const slowNotifications = 2 * time.Second

func judgeNotifications(found canary.Found, err error) Result {
	switch {
	case errors.Is(err, errNoStorage):
		return failed(Unknown, err, "set registry.storage_root or registry.storage_config where the janitor can reach it")
	case err != nil:
		return failed(Unknown, err, remedyOf(err, "look at the registry's log"))
	case found.Deaf:
		return Result{State: Fail, Message: fmt.Sprintf("no notification of a push came within %s: runs remove nothing", found.Lag.Round(time.Millisecond)), Remedy: notifyRemedy}
	case found.DeafToPulls:
		return Result{
			State: Fail, Remedy: pullsRemedy,
			Message: "notifications of pushes arrive, and those of pulls do not, or not from each replica: runs remove nothing",
		}
	case found.Lag > slowNotifications:
		return Result{State: Warn, Message: "a notification takes " + found.Lag.Round(time.Millisecond).String(), Remedy: "look at the load of the registry and of the janitor"}
	}
	return Result{Message: "a notification takes " + found.Lag.Round(time.Millisecond).String()}
}
