package storage

import "time"

// SettleAtOnce has what was written just now count as settled.
func SettleAtOnce() (undo func()) {
	was := settled
	settled = -time.Hour
	return func() { settled = was }
}
