package storage

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/kilnbuild/kiln/services/janitor/internal/enforce"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
)

// Begin makes the quarantine of a run. Close it.
func (s *Storage) Begin(head quarantine.Head) (enforce.Quarantine, error) {
	q, err := s.quarantine(head.Run, true)
	if err != nil {
		return nil, err
	}
	return q, q.Note(quarantine.Line{Head: &head})
}

// Resume opens the quarantine of a run that has begun.
func (s *Storage) Resume(run string) (enforce.Quarantine, error) {
	q, err := s.quarantine(run, false)
	if err != nil {
		return nil, err // and no interface that holds a quarantine without a journal
	}
	return q, nil
}

func (s *Storage) quarantine(run string, isNew bool) (*Quarantine, error) {
	q := &Quarantine{storage: s, run: run}
	journal, err := s.files.log(q.journalPath(), isNew)
	if err != nil {
		return nil, err
	}
	q.journal = journal
	return q, nil
}

func (q *Quarantine) journalPath() string { return filepath.Join(q.dir(), "journal") }

// Note writes lines to the journal; when it returns, they outlast a loss of power.
func (q *Quarantine) Note(lines ...quarantine.Line) error {
	if len(lines) == 0 {
		return nil
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	for _, line := range lines {
		if err := encoder.Encode(line); err != nil {
			return err
		}
	}
	return q.journal.add(out.Bytes())
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
		if errors.Is(err, errGone) {
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
	file, err := s.files.readLog((&Quarantine{storage: s, run: run}).journalPath())
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
