package contextstore_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kilnbuild/kiln/services/builder/internal/contextstore"
)

// putInto names the directory in which a child process puts contexts until it is
// killed.
const putInto = "KILN_TEST_PUT_INTO"

func TestMain(m *testing.M) {
	if dir := os.Getenv(putInto); dir != "" {
		putForever(dir)
	}
	goleak.VerifyTestMain(m)
}

// putForever stores and sweeps contexts that share some files.
func putForever(dir string) {
	bounds := limits()
	bounds.KeepBytes = 16 << 20
	s, err := contextstore.Open(dir, bounds, slog.New(slog.DiscardHandler), time.Now)
	for i := 0; err == nil; i++ {
		items := make([]item, 0, 300)
		for j := range 300 { // many and small, so that naming them takes its time
			items = append(items, item{Name: itoa(j), Body: strings.Repeat(itoa(i*j), 100)})
		}
		var archive []byte
		if archive, err = writeTar(items); err != nil {
			break
		}
		if _, err = s.Put(context.Background(), project, bytes.NewReader(archive), ""); err == nil {
			_, err = s.Sweep(context.Background())
		}
	}
	panic(err)
}
