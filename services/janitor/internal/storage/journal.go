package storage

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/services/janitor/internal/enforce"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
)

// Begin makes the quarantine of a run. Close it.
func (s *Storage) Begin(head quarantine.Head) (enforce.Quarantine, error) {
	q := &Quarantine{storage: s, run: head.Run}
	if err := os.MkdirAll(q.dir(), 0o750); err != nil {
		return nil, denied(err)
	}
	if err := q.open(); err != nil {
		return nil, err
	}
	err := q.Note(quarantine.Line{Head: &head})
	return q, errors.Join(err, syncDir(s.own("quarantine")))
}

// Resume opens the quarantine of a run that has begun.
func (s *Storage) Resume(run string) (enforce.Quarantine, error) {
	q := &Quarantine{storage: s, run: run}
	return q, q.open()
}

func (q *Quarantine) open() (err error) {
	q.journal, err = os.OpenFile(q.journalPath(), os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return denied(err)
	}
	// A line that was cut by the end of the process is no part of the next one.
	whole, err := wholeLines(q.journal)
	if err == nil {
		err = q.journal.Truncate(whole)
	}
	if err == nil {
		_, err = q.journal.Seek(whole, io.SeekStart)
	}
	return err
}

func wholeLines(r io.Reader) (size int64, _ error) {
	in := bufio.NewReaderSize(r, 1<<20)
	for {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return size, nil
		}
		if err != nil {
			return size, err
		}
		size += int64(len(line))
	}
}

func (q *Quarantine) journalPath() string { return filepath.Join(q.dir(), "journal") }

// Note writes lines to the journal; when it returns, they outlast a loss of power.
func (q *Quarantine) Note(lines ...quarantine.Line) error {
	if len(lines) == 0 {
		return nil
	}
	out := bufio.NewWriterSize(q.journal, 1<<16)
	encoder := json.NewEncoder(out)
	for _, line := range lines {
		if err := encoder.Encode(line); err != nil {
			return err
		}
	}
	if err := errors.Join(out.Flush(), q.journal.Sync()); err != nil {
		return denied(err)
	}
	return nil
}

// Close closes the journal.
func (q *Quarantine) Close() error { return q.journal.Close() }

// Journals are those of all runs, the oldest first.
func (s *Storage) Journals() (all []quarantine.Journal, _ error) {
	runs, err := s.runs()
	if err != nil {
		return nil, err
	}
	for _, run := range runs {
		j, err := s.readJournal(run)
		if errors.Is(err, fs.ErrNotExist) {
			continue // purged meanwhile, or killed as it began
		}
		if err != nil {
			return nil, err
		}
		all = append(all, j)
	}
	return all, nil
}

func (s *Storage) readJournal(run string) (j quarantine.Journal, err error) {
	file, err := os.Open((&Quarantine{storage: s, run: run}).journalPath())
	if err != nil {
		return j, err
	}
	defer func() { _ = file.Close() }() // It was only read.
	j.Head.Run = run
	in := bufio.NewReaderSize(file, 1<<16)
	for {
		raw, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return j, nil // what is left was cut by the end of the process
		}
		if err != nil {
			return j, err
		}
		var line quarantine.Line
		if err := json.Unmarshal(raw, &line); err != nil {
			return j, fmt.Errorf("the journal of run %s is damaged: %w", run, err)
		}
		j.Add(line)
	}
}
