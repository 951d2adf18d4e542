package quarantine_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/aip"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
)

// Entries have one order, also those that one run noted at the same moment, so that a page
// goes on after the last entry of the page before, whatever was restored or purged meanwhile.
func TestCompare_GoesOnAfterAnEntryThatIsGone(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	var all []quarantine.Entry
	for i := range 24 {
		all = append(all, quarantine.Entry{ID: fmt.Sprintf("run-%d", i), At: at.Add(time.Duration(i/12) * time.Hour)})
	}
	slices.SortFunc(all, quarantine.Entry.Compare)
	for i, want := range []string{"run-23", "run-22"} {
		if all[i].ID != want {
			t.Errorf("entry %d is %s, want the newest first", i, all[i].ID)
		}
	}
	for i, e := range all {
		last := quarantine.Entry{ID: e.ID, At: e.At}
		without := slices.Delete(slices.Clone(all), i, i+1)
		if there, gone := aip.After(all, last, quarantine.Entry.Compare), aip.After(without, last, quarantine.Entry.Compare); there != i+1 || gone != i {
			t.Errorf("after entry %d comes %d, and %d when it is gone", i, there, gone)
		}
	}
}
