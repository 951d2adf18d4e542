package build

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Bounds of a build's events, in bytes. A step's name comes again with each of its
// events, and a Dockerfile may give it a megabyte.
const (
	maxEvents    = 256 << 20 // of one build
	maxEventText = 8 << 10   // of a name or message
)

// bounded returns an event with its texts cut to what is kept, and whether it is kept
// at all. What a build writes beyond maxEvents is not; a warning says so once. How it
// ends and where it stands always are. mu is held.
func (l *live) bounded(kind any) (_ any, keep bool) {
	kind = cutTexts(kind)
	switch kind.(type) {
	case StepEvent, LogEvent, Warning:
	default:
		return kind, true
	}
	before := l.written <= maxEvents
	if before && l.written+sizeOf(kind) > maxEvents {
		l.written += maxEvents
		message := fmt.Sprintf("the build has more than %d bytes of events; what follows is not kept", maxEvents)
		return Warning{Message: message}, true
	}
	return kind, before
}

// sizeOf returns about how many bytes an event takes in memory and in the store.
func sizeOf(kind any) int {
	const fixed = 256
	switch e := kind.(type) {
	case LogEvent:
		return fixed + len(e.Data)
	case StepEvent:
		return fixed + len(e.Digest) + len(e.Name) + len(e.Error) + len(e.ProgressItem)
	case Warning:
		size := fixed + len(e.Message) + len(e.URL) + len(e.File) + len(e.StepDigest)
		for _, detail := range e.Details {
			size += len(detail)
		}
		return size
	default:
		return fixed
	}
}

// maxDetails bounds the details of a warning.
const maxDetails = 64

func cutTexts(kind any) any {
	switch e := kind.(type) {
	case StepEvent:
		e.Digest, e.Name, e.Error, e.ProgressItem = cut(e.Digest), cut(e.Name), cut(e.Error), cut(e.ProgressItem)
		return e
	case Warning:
		e.Message, e.URL, e.File, e.StepDigest = cut(e.Message), cut(e.URL), cut(e.File), cut(e.StepDigest)
		details := make([]string, 0, min(len(e.Details), maxDetails))
		for _, detail := range e.Details[:min(len(e.Details), maxDetails)] {
			details = append(details, cut(detail))
		}
		e.Details = details
		return e
	default:
		return kind
	}
}

// cut returns the beginning of a text that is longer than maxEventText, in whole
// characters and in memory of its own.
func cut(text string) string {
	if len(text) <= maxEventText {
		return text
	}
	end := maxEventText
	for end > maxEventText-utf8.UTFMax && !utf8.RuneStart(text[end]) {
		end--
	}
	return strings.Clone(text[:end]) + "…"
}
