//! Timers that fire in the order of tokio's hierarchical wheel (Varghese and Lauck, 1987).
//!
//! A timer that is armed long in advance waits in a coarse slot and moves to a finer one when its time is near, behind
//! timers that were armed meanwhile. So timers of the same millisecond do not fire in the order of arming. A simulated
//! run can equal one of the real runtime only if it reproduces that order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use gaggled_core::base::time::Instant;

/// Each level has 64 slots, each as long as the whole level below.
const BITS: u32 = 6;

/// Timers by owner; each owner has at most one.
#[derive(Debug)]
pub struct TimerWheel<T> {
    elapsed: u64,
    slots: BTreeMap<(u32, u64), VecDeque<(T, u64)>>,
    armed: BTreeMap<T, u64>,
    moments: BTreeSet<(u64, T)>,
}

impl<T: Copy + Ord> TimerWheel<T> {
    /// A wheel without timers.
    pub fn new() -> Self {
        Self { elapsed: 0, slots: BTreeMap::new(), armed: BTreeMap::new(), moments: BTreeSet::new() }
    }

    /// The next moment at which a timer fires.
    pub fn next(&self) -> Option<Instant> {
        self.moments.first().map(|(when, _)| Instant::from_micros(when * 1000))
    }

    /// When the timer of this owner fires, if it is armed.
    pub fn armed(&self, who: T) -> Option<Instant> {
        self.armed.get(&who).map(|when| Instant::from_micros(when * 1000))
    }

    /// Arms the timer of an owner, in place of an earlier one.
    pub fn arm(&mut self, who: T, at: Instant) {
        self.cancel(who);
        let when = at.as_micros().div_ceil(1000).max(self.elapsed);
        self.armed.insert(who, when);
        self.moments.insert((when, who));
        self.place(who, when);
    }

    /// Disarms a timer.
    pub fn cancel(&mut self, who: T) {
        if let Some(when) = self.armed.remove(&who) {
            self.moments.remove(&(when, who));
            self.slots.values_mut().for_each(|slot| slot.retain(|(other, _)| *other != who));
            self.slots.retain(|_, slot| !slot.is_empty());
        }
    }

    /// Advances to the next moment at which timers fire; returns their owners.
    pub fn expire(&mut self) -> Vec<T> {
        let Some((target, _)) = self.moments.first().copied() else { return Vec::new() };
        loop {
            let next = self
                .slots
                .keys()
                .map(|(level, slot)| (slot << (BITS * level), *level, *slot))
                .min_by_key(|(start, level, _)| (*level, *start));
            let Some((start, level, slot)) = next else { return Vec::new() };
            self.elapsed = self.elapsed.max(start);
            let entries = self.slots.remove(&(level, slot)).unwrap_or_default();
            let (due, later): (Vec<_>, Vec<_>) = entries.into_iter().partition(|(_, when)| *when <= self.elapsed);
            for (who, when) in later {
                self.place(who, when);
            }
            if self.elapsed >= target {
                for (who, when) in &due {
                    self.armed.remove(who);
                    self.moments.remove(&(*when, *who));
                }
                return due.into_iter().map(|(who, _)| who).collect();
            }
        }
    }

    fn place(&mut self, who: T, when: u64) {
        let differing = (self.elapsed ^ when) | ((1 << BITS) - 1);
        let level = differing.ilog2() / BITS;
        self.slots.entry((level, when >> (BITS * level))).or_default().push_back((who, when));
    }
}

impl<T: Copy + Ord> Default for TimerWheel<T> {
    fn default() -> Self {
        Self::new()
    }
}
