package up

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/kiln/internal/supervise"
)

// report is what a detached run tells the command that started it, once.
type report struct {
	Summary string `json:"summary,omitempty"`
	Error   string `json:"error,omitempty"`
}

// reporter writes the report to a descriptor, if there is one.
type reporter struct{ file *os.File }

func newReporter(fd int) *reporter {
	if fd <= 0 {
		return &reporter{}
	}
	unix.CloseOnExec(fd) // It is not for the children.
	return &reporter{file: os.NewFile(uintptr(fd), "ready")}
}

// ready reports success, and says whether anybody listens.
func (r *reporter) ready(summary string) bool { return r.send(report{Summary: summary}) }

func (r *reporter) failed(err error) { r.send(report{Error: fault.Line(err)}) }

func (r *reporter) send(what report) bool {
	if r.file == nil {
		return false
	}
	_ = json.NewEncoder(r.file).Encode(what) // Who started us may be gone: then nobody minds.
	r.file.Close()
	r.file = nil
	return true
}

// reportMargin is how much longer than its start a detached run may take to
// report: it cleans up after a failure first.
const reportMargin = 60 * time.Second

// startDetached starts this command again, in a session of its own, and waits
// until it reports.
func startDetached(cmd *cobra.Command, opts Options) error {
	if err := needRoot(); err != nil {
		return err
	}
	opts, err := opts.complete()
	if err != nil {
		return err
	}
	paths, err := makePaths(opts.DataDir)
	if err != nil {
		return err
	}
	log, err := supervise.OpenLog(paths.log("kiln"))
	if err != nil {
		return err
	}
	defer log.Close()
	reports, give, err := os.Pipe()
	if err != nil {
		return err
	}
	defer reports.Close()
	child, err := startAgain(cmd.Context(), log, give)
	give.Close() // Only the child has it now: its end is the end of the reports.
	if err != nil {
		return err
	}

	what, err := awaitReport(cmd.Context(), child, reports, opts.StartTimeout+reportMargin)
	switch {
	case err != nil:
		return fmt.Errorf("kiln up did not start: %w; its log is %s", err, log.Name())
	case what.Error != "":
		return fmt.Errorf("kiln up did not start: %s; its log is %s", what.Error, log.Name())
	}
	fmt.Fprint(cmd.OutOrStdout(), what.Summary)
	fmt.Fprintf(cmd.OutOrStdout(), "\nIt runs as pid %d; kiln down --data-dir %s stops it.\n", child.Process.Pid, opts.DataDir)
	return child.Process.Release()
}

func startAgain(ctx context.Context, log, give *os.File) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	const firstExtraFile = 3
	// The later flag wins.
	args := append(os.Args[1:len(os.Args):len(os.Args)], "--detach=false", "--ready-fd="+strconv.Itoa(firstExtraFile))
	// It outlives this command: its context must not end it.
	child := exec.CommandContext(context.WithoutCancel(ctx), self, args...)
	child.Stdout, child.Stderr = log, log
	child.ExtraFiles = []*os.File{give}
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return child, child.Start()
}

// awaitReport waits for the report. If this command is told to end before that,
// so is the child.
func awaitReport(ctx context.Context, child *exec.Cmd, reports io.Reader, within time.Duration) (report, error) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, unix.SIGTERM)
	defer stop()
	type outcome struct {
		what report
		err  error
	}
	got := make(chan outcome, 1)
	go func() {
		var o outcome
		o.err = json.NewDecoder(reports).Decode(&o.what)
		got <- o
	}()
	select {
	case o := <-got:
		if o.err == nil {
			return o.what, nil
		}
		return report{}, fmt.Errorf("it ended without a word: %w", child.Wait())
	case <-ctx.Done():
		_ = child.Process.Signal(unix.SIGTERM)
		return report{}, errors.Join(context.Cause(ctx), child.Wait())
	case <-time.After(within):
		_ = child.Process.Signal(unix.SIGTERM)
		return report{}, errors.Join(fmt.Errorf("not ready within %s", within), child.Wait())
	}
}
