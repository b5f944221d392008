//! Leases: who still lives. A pure state machine; renewals stay in memory at the server that holds the streams.
//!
//! It offers transitions (`tick`) until it hears that they were committed (`committed`). Silence of ours is never taken
//! for silence of theirs: after a start, a leader change or a stall everything begins anew at full length.

use std::{collections::BTreeMap, time::Duration};

use weft_model::Mono;

use crate::object::{Holder, LeaseState};

/// Unrenewed for so long: picked only when nothing better is there.
pub const UNKNOWN_AFTER: Duration = Duration::from_secs(10);
/// Unrenewed for so long: not picked.
pub const DEAD_AFTER: Duration = Duration::from_secs(60);
/// `tick` is called every second; so long without a call means that we ourselves stood still.
pub const STALL: Duration = Duration::from_secs(5);

/// The leases whose streams this server holds.
#[derive(Debug, Clone, Default)]
pub struct Leases {
    held: BTreeMap<Holder, Row>,
    ticked: Option<Mono>,
}

#[derive(Debug, Clone)]
struct Row {
    renewed: Mono,
    /// Death is counted from here: later than `renewed` where many lapsed together.
    counted: Mono,
    /// As committed.
    state: LeaseState,
}

/// What to commit: see [`crate::Op::Lapse`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lapse {
    pub holders: Vec<Holder>,
    pub to: LeaseState,
}

// === impl Leases ===

impl Leases {
    /// A stream of the holder began here, or its lease was found in the store when this server started.
    pub fn adopt(&mut self, now: Mono, holder: Holder, state: LeaseState) {
        self.held.insert(holder, Row { renewed: now, counted: now, state });
        self.check_invariants();
    }

    /// It is deregistered, or another server holds its stream now.
    pub fn forget(&mut self, holder: &Holder) {
        self.held.remove(holder);
    }

    /// Whether the committed state must be made alive again ([`crate::Op::Attach`]).
    pub fn renew(&mut self, now: Mono, holder: &Holder) -> bool {
        let Some(row) = self.held.get_mut(holder) else { return false };
        row.renewed = now;
        row.counted = now;
        row.state != LeaseState::Alive
    }

    /// The store says so.
    pub fn committed(&mut self, holder: &Holder, state: LeaseState) {
        if let Some(row) = self.held.get_mut(holder) {
            row.state = state;
        }
    }

    /// They would have left a service with nothing to pick: not asked again before another full length.
    pub fn spared(&mut self, now: Mono, holders: &[Holder]) {
        for holder in holders {
            if let Some(row) = self.held.get_mut(holder) {
                row.counted = now;
            }
        }
    }

    /// Everything begins anew at full length.
    pub fn restart(&mut self, now: Mono) {
        for row in self.held.values_mut() {
            row.renewed = now;
            row.counted = now;
        }
        self.ticked = Some(now);
    }

    pub fn holders(&self) -> impl Iterator<Item = &Holder> {
        self.held.keys()
    }

    pub fn contains(&self, holder: &Holder) -> bool {
        self.held.contains_key(holder)
    }

    /// Once a second. The transitions that are due; the same ones again until they are committed.
    pub fn tick(&mut self, now: Mono) -> Vec<Lapse> {
        let stalled = self.ticked.is_some_and(|t| now.since(t) >= STALL);
        self.ticked = Some(now);
        if stalled {
            self.restart(now);
            return Vec::new();
        }
        let living = self.held.values().filter(|r| r.state != LeaseState::Dead).count();
        let lapsed = self.held.values().filter(|r| r.state != LeaseState::Dead && r.is_lapsed(now)).count();
        // one alone is no mass
        let mass = lapsed > 1 && lapsed.saturating_mul(3) > living;
        let (mut unknown, mut dead) = (Vec::new(), Vec::new());
        for (holder, row) in &mut self.held {
            if !row.is_lapsed(now) || row.state == LeaseState::Dead {
                continue;
            }
            if mass {
                // it is rather us, or the network, than all of them
                row.counted = now;
            }
            if now.since(row.counted) >= DEAD_AFTER && row.state == LeaseState::Unknown {
                dead.push(holder.clone());
            } else if row.state == LeaseState::Alive {
                unknown.push(holder.clone());
            }
        }
        self.check_invariants();
        let lapse = |holders: Vec<Holder>, to| (!holders.is_empty()).then_some(Lapse { holders, to });
        [lapse(unknown, LeaseState::Unknown), lapse(dead, LeaseState::Dead)].into_iter().flatten().collect()
    }

    fn check_invariants(&self) {
        debug_assert!(self.held.values().all(|r| r.counted >= r.renewed), "death counted from before a renewal");
    }
}

impl Row {
    fn is_lapsed(&self, now: Mono) -> bool {
        now.since(self.renewed) >= UNKNOWN_AFTER
    }
}

#[cfg(test)]
mod tests;
