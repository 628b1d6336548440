//! What a node has to write to the store, and when: the newest state of each exported program, and no more often than the
//! store can take.
//!
//! The first change is written at once. While changes keep coming, the writes are spaced, at first by [`GAP_MIN`], then by
//! twice that, up to [`GAP_MAX`]; after [`QUIET`] without a change the spacing begins anew. One write is under way at a time.
//! So a node causes at most 12 writes in the first 5 s of a storm and one a second after that, however many programs it has.
//! Nothing is hidden by that: the states count how often a program has gone down.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use super::published::PublishedState;
use crate::base::time::{Instant, Millis};

/// The first space between two writes.
pub const GAP_MIN: Millis = Millis(20);
/// The largest space.
pub const GAP_MAX: Millis = Millis(1000);
/// How long there must have been no write for the spacing to begin anew.
pub const QUIET: Millis = Millis(5000);
/// How many keys one write has at most: etcd takes 128 operations in one transaction.
pub const BATCH_MAX: usize = 100;

/// One write: a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Its number.
    pub number: u64,
    /// States to write.
    pub states: Vec<(Arc<str>, Arc<PublishedState>)>,
    /// States of programs that are not exported any more, to be deleted.
    pub withdrawn: Vec<Arc<str>>,
    /// Whether to write the session as well: all states of the node are written in it now.
    pub announces: bool,
}

/// The states that a node publishes.
#[derive(Clone, Debug, Default)]
pub struct Exports {
    states: BTreeMap<Arc<str>, Arc<PublishedState>>,
    /// Those that the store does not have, or not in this session.
    unwritten: BTreeSet<Arc<str>>,
    /// Whether the session is written.
    announced: bool,
    under_way: Option<Batch>,
    /// The number of the last write.
    number: u64,
    /// The last program that was written: the next write begins after it, so that all have their turn.
    last_program: Option<Arc<str>>,
    gap: Millis,
    last_write: Option<Instant>,
}

impl Exports {
    /// Begins a session: everything is written in it, and the session itself with the last of it.
    pub fn begin_session(&mut self) {
        self.announced = false;
        self.under_way = None;
        self.unwritten.extend(self.states.keys().cloned());
    }

    /// Replaces all states, those of a whole daemon.
    pub fn replace(&mut self, states: impl IntoIterator<Item = (Arc<str>, PublishedState)>) {
        let mut gone: BTreeSet<Arc<str>> = std::mem::take(&mut self.states).into_keys().collect();
        for (program, state) in states {
            gone.remove(&program);
            self.change(program, state);
        }
        self.unwritten.extend(gone);
    }

    /// A program may have another state. Nothing is written if only events have happened that mean nothing to others.
    pub fn change(&mut self, program: Arc<str>, state: PublishedState) {
        if self.states.get(&program).is_some_and(|known| known.says_the_same(&state)) {
            return;
        }
        self.unwritten.insert(program.clone());
        self.states.insert(program, Arc::new(state));
    }

    /// Programs whose states are in the store: what is not exported is to be withdrawn.
    pub fn found_in_store(&mut self, programs: impl IntoIterator<Item = Arc<str>>) {
        let strange = programs.into_iter().filter(|program| !self.states.contains_key(program));
        self.unwritten.extend(strange);
    }

    /// The connection has ended: what is under way counts as failed.
    pub fn interrupt(&mut self) {
        self.written(self.number, false);
    }

    /// Whether nothing is left to be written.
    pub fn is_idle(&self) -> bool {
        self.under_way.is_none() && self.unwritten.is_empty()
    }

    /// Whether the session has been written, and has not ended since.
    pub fn is_announced(&self) -> bool {
        self.announced
    }

    /// The next write, if there is one and it is time.
    ///
    /// # Errors
    ///
    /// When it is time, if there is something to write.
    pub fn next_write(&mut self, now: Instant) -> Result<Batch, Option<Instant>> {
        if self.under_way.is_some() || self.announced && self.unwritten.is_empty() {
            return Err(None);
        }
        let spaced = self.last_write.filter(|last| now < *last + QUIET).map(|last| last + self.gap);
        if let Some(at) = spaced.filter(|at| *at > now) {
            return Err(Some(at));
        }
        self.gap = if spaced.is_some() { Millis(self.gap.0 * 2).min(GAP_MAX) } else { GAP_MIN };
        self.last_write = Some(now);
        self.number += 1;
        let mut batch = Batch { number: self.number, ..Batch::default() };
        let last = self.last_program.take().unwrap_or_default();
        let after = self.unwritten.range((Bound::Excluded(last.clone()), Bound::Unbounded));
        let chosen: Vec<Arc<str>> = after.chain(self.unwritten.range(..=last)).take(BATCH_MAX).cloned().collect();
        self.last_program = chosen.last().cloned();
        for program in chosen {
            self.unwritten.remove(&program);
            match self.states.get(&program) {
                Some(state) => batch.states.push((program, state.clone())),
                None => batch.withdrawn.push(program),
            }
        }
        batch.announces = !self.announced && self.unwritten.is_empty();
        self.under_way = Some(batch.clone());
        Ok(batch)
    }

    /// The write under way has been carried out, or has failed, or its result is not known: then it is repeated, which does
    /// no harm.
    pub fn written(&mut self, number: u64, done: bool) {
        let Some(batch) = self.under_way.take_if(|batch| batch.number == number) else { return };
        if done {
            self.announced |= batch.announces;
        } else {
            let programs = batch.states.into_iter().map(|(program, _)| program);
            self.unwritten.extend(programs.chain(batch.withdrawn));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::{
            ids::{EpochId, InstanceId, Seq},
            time::WallTime,
        },
        cluster::{RemotePhase, RemoteSource},
    };

    fn state(seq: u64) -> PublishedState {
        let source = RemoteSource { journal: "j".into(), epoch: EpochId(1), seq: Seq(seq), falls: seq };
        let (instance, phase) = (InstanceId(seq), RemotePhase::Up);
        PublishedState { source, node: None, instance, phase, outcome: None, time: WallTime(0), why: Vec::new() }
    }

    /// How many writes there are in a storm of so many milliseconds with a change of each of these programs in each of them.
    fn writes(millis: u64, programs: u64) -> usize {
        let mut exports = Exports::default();
        let mut writes = 0;
        for now in 0..millis {
            for program in 0..programs {
                exports.change(format!("p{program}").into(), state(now));
            }
            if let Ok(batch) = exports.next_write(Instant::from_micros(now * 1000)) {
                writes += 1;
                exports.written(batch.number, true);
            }
        }
        writes
    }

    #[test]
    fn a_storm_causes_few_writes_however_many_programs_there_are() {
        for programs in [1, 90] {
            assert!(writes(5000, programs) <= 12, "{}", writes(5000, programs));
            assert!(writes(60_000, programs) <= 12 + 55, "{}", writes(60_000, programs));
        }
    }

    #[test]
    fn a_session_is_announced_with_the_last_of_its_states_and_a_failed_write_is_repeated() {
        let mut exports = Exports::default();
        for program in 0..150 {
            exports.change(format!("p{program}").into(), state(1));
        }
        exports.begin_session();
        let first = exports.next_write(Instant::default()).expect("the first");
        assert!(first.states.len() == BATCH_MAX && !first.announces);
        assert_eq!(exports.next_write(Instant::default()), Err(None), "one write at a time");
        exports.written(first.number, false);
        let mut now = Instant::default();
        let mut written = BTreeSet::new();
        while !exports.is_announced() {
            match exports.next_write(now) {
                Ok(batch) => {
                    written.extend(batch.states.into_iter().map(|(program, _)| program));
                    exports.written(batch.number, true);
                }
                Err(at) => now = at.expect("there is more to write"),
            }
        }
        assert_eq!(written.len(), 150);
        exports.replace([("p1".into(), state(2))]);
        exports.found_in_store(["old".into(), "p1".into()]);
        let mut withdrawn = 0;
        now = now + QUIET;
        while let Ok(batch) = exports.next_write(now) {
            withdrawn += batch.withdrawn.len();
            exports.written(batch.number, true);
            now = now + QUIET;
        }
        assert_eq!(withdrawn, 150, "149 that are exported no longer, and one of an earlier life");
    }
}
