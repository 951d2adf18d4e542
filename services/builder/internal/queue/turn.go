package queue

import (
	"cmp"
	"slices"
	"sort"
)

// Whose turn it is. The tenants that wait, and are not at a limit of their own,
// share by weight the slots that they have and those that are free. Such a share
// is seldom a whole number:
//
//   - A tenant with less than the whole part of its share goes first.
//   - What is left, the parts of slots, goes round in virtual time, as in
//     start-time fair queueing (Goyal, Vin, Cheng: SIGCOMM 1996). Who got one is
//     due again later, by the part of a slot in its share: with half a slot after
//     2, with a tenth after 10. Who did not compete for a while is due at once,
//     but not earlier: idle time is no credit.
//
// So, while they wait, no tenant has a whole slot more or less than its share,
// however long its builds take, and tenants with less than one slot take turns.
// Ties go to who came first.

// tenant is one tenant that has builds.
type tenant struct {
	name    string
	limits  Limits
	weight  int
	running int
	bytes   int64     // of those that wait
	waiting []*Ticket // in the order of their turns; see before
	due     float64   // when it is due a part of a slot, in virtual time
	reason  string    // why its builds wait; see tellAll
}

// full says whether the tenant has all the slots that it may have.
func (tn *tenant) full() bool { return tn.limits.MaxRunning > 0 && tn.running >= tn.limits.MaxRunning }

// before orders the builds of one tenant.
func before(a, b *Ticket) int {
	return cmp.Or(cmp.Compare(b.priority, a.priority), cmp.Compare(a.sequence, b.sequence))
}

// claim is how good a tenant's claim to one more slot is; the smallest wins.
type claim int

const (
	wholeShare  claim = iota // it has less than the whole part of its share
	partOfShare              // it has less than its share
	beyondShare              // it has its share
	atLimit                  // it has as much as it may have
)

// turn is the place of one build in the order.
type turn struct {
	claim  claim
	due    float64 // in virtual time
	ticket *Ticket
}

func (a turn) compare(b turn) int {
	return cmp.Or(cmp.Compare(a.claim, b.claim), cmp.Compare(a.due, b.due), cmp.Compare(a.ticket.sequence, b.ticket.sequence))
}

// shares is what the tenants divide among them.
type shares struct {
	slots, weights int
	now            float64 // in virtual time
}

// shares counts the slots of the tenants that compete and the free ones. When
// none is free, the order is that of one that would be.
func (q *Queue) shares() shares {
	s := shares{slots: max(1, q.free()), now: q.clock}
	for _, tn := range q.backlog {
		if !tn.full() {
			s.slots += tn.running
			s.weights += tn.weight
		}
	}
	s.weights = max(1, s.weights) // All are at their limits.
	return s
}

// round is how long it takes until a tenant that got a part of a slot is due
// another, in virtual time.
func (s shares) round(tn *tenant) float64 {
	part := s.slots * tn.weight % s.weights
	if part == 0 {
		return 0 // Its share is whole.
	}
	return float64(s.weights) / float64(part)
}

// turn is the turn of the build that is at a place, from 0, among those of its
// tenant that wait. It grows with the place.
func (s shares) turn(tn *tenant, place int) turn {
	share := s.slots * tn.weight // times s.weights
	// What it owes was reckoned when its share was another, perhaps.
	due := min(max(tn.due, s.now), s.now+s.round(tn))
	t := turn{claim: beyondShare, due: due + float64(place*s.weights)/float64(share), ticket: tn.waiting[place]}
	switch running, limit := tn.running+place, tn.limits.MaxRunning; {
	case limit > 0 && running >= limit:
		t.claim = atLimit
	case (running+1)*s.weights <= share:
		t.claim = wholeShare
	case running*s.weights < share:
		t.claim = partOfShare
	}
	return t
}

// next returns the build whose turn it is, and lets virtual time go on. It
// returns nil when no tenant may have a slot.
func (q *Queue) next() *Ticket {
	best, s := turn{claim: atLimit}, q.shares()
	for _, tn := range q.backlog {
		if t := s.turn(tn, 0); t.claim < atLimit && (best.ticket == nil || t.compare(best) < 0) {
			best = t
		}
	}
	if best.claim == partOfShare {
		q.clock = best.due
		best.ticket.tenant.due = best.due + s.round(best.ticket.tenant)
	}
	return best.ticket
}

// order returns all that wait, in the order of their turns.
func (q *Queue) order() []*Ticket {
	s, turns := q.shares(), make([]turn, 0, q.waiting)
	for _, tn := range q.backlog {
		for place := range tn.waiting {
			turns = append(turns, s.turn(tn, place))
		}
	}
	slices.SortFunc(turns, turn.compare)
	tickets := make([]*Ticket, len(turns))
	for i, t := range turns {
		tickets[i] = t.ticket
	}
	return tickets
}

// position is the place of one build in that order, from 1, without making it.
func (q *Queue) position(t *Ticket) int {
	s := q.shares()
	own, _ := slices.BinarySearchFunc(t.tenant.waiting, t, before)
	mine, position := s.turn(t.tenant, own), own+1
	for _, tn := range q.backlog {
		if tn != t.tenant {
			position += sort.Search(len(tn.waiting), func(place int) bool { return s.turn(tn, place).compare(mine) > 0 })
		}
	}
	return position
}
