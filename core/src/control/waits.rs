//! All pending commands and `wait` requests, indexed by the programs and groups that they wait for.
//!
//! For each event only the waits for its program and its group are looked at, however many others there are.

use std::collections::{BTreeMap, BTreeSet};

use super::wait::{Progress, Wait};
use crate::{
    base::ids::{GroupId, ProgramId},
    event::{Cause, Envelope, Event, SystemEvent},
    state::State,
};

/// Pending waits, each with a number.
#[derive(Clone, Debug, Default)]
pub struct Waits {
    next: u64,
    by_number: BTreeMap<u64, Wait>,
    by_program: BTreeMap<ProgramId, BTreeSet<u64>>,
    by_group: BTreeMap<GroupId, BTreeSet<u64>>,
    /// Those whose proposed events are not all committed.
    uncommitted: BTreeSet<u64>,
}

impl Waits {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_number.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_number.is_empty()
    }

    /// The wait with this number.
    pub fn get(&self, number: u64) -> Option<&Wait> {
        self.by_number.get(&number)
    }

    /// All of them, with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Wait)> {
        self.by_number.iter().map(|(number, wait)| (*number, wait))
    }

    /// Adds a wait; returns its number and how far it has come.
    pub fn add(&mut self, mut wait: Wait, state: &State) -> (u64, Progress) {
        self.next += 1;
        let number = self.next;
        if wait.is_uncommitted() {
            self.uncommitted.insert(number);
        }
        for program in wait.programs() {
            self.by_program.entry(*program).or_default().insert(number);
        }
        for group in wait.groups() {
            self.by_group.entry(*group).or_default().insert(number);
        }
        let progress = wait.look(state);
        self.by_number.insert(number, wait);
        (number, progress)
    }

    /// An event was committed and applied. Returns the waits that are done now, or never will be.
    pub fn committed(&mut self, envelope: &Envelope, state: &State) -> Vec<(u64, Progress)> {
        let mut settled = BTreeMap::new();
        let mut look = |waits: &mut BTreeMap<u64, Wait>, number: u64, look: &dyn Fn(&mut Wait) -> Progress| {
            if !settled.contains_key(&number)
                && let Some(progress) =
                    waits.get_mut(&number).map(look).filter(|progress| *progress != Progress::Pending)
            {
                settled.insert(number, progress);
            }
        };
        if matches!(envelope.cause, Cause::Operator { .. }) {
            let waits = &mut self.by_number;
            let is_last = |number: &u64| waits.get_mut(number).is_some_and(|wait| wait.committed(envelope));
            let accepted: Vec<u64> = self.uncommitted.iter().copied().filter(is_last).collect();
            for number in accepted {
                self.uncommitted.remove(&number);
                look(&mut self.by_number, number, &|wait| wait.look(state));
            }
        }
        if envelope.event == Event::System(SystemEvent::ShutdownStarted) {
            // Programs that are waited for will not start any more, and no event of theirs says so.
            let all: Vec<u64> = self.by_number.keys().copied().collect();
            for number in all {
                look(&mut self.by_number, number, &|wait| wait.look(state));
            }
        }
        let group = match &envelope.event {
            Event::Group(group, _) => Some(*group),
            Event::Program(program, _) => state.graph.programs[*program].group,
            Event::Remote(..) | Event::Dependency(..) | Event::System(_) => None,
        };
        if let Some(group) = group {
            for number in self.by_group.get(&group).into_iter().flatten() {
                look(&mut self.by_number, *number, &|wait| wait.look_at_group(group, state));
            }
        }
        if let Some(program) = state.graph.subject(&envelope.event) {
            for number in self.by_program.get(&program).into_iter().flatten() {
                look(&mut self.by_number, *number, &|wait| wait.look_at_program(program, state));
            }
        }
        settled.into_iter().collect()
    }

    /// The command that has proposed events with this cause, one of which was refused.
    pub fn refused(&self, cause: &Cause) -> Option<u64> {
        let has_proposed = |number: &u64| self.by_number.get(number).is_some_and(|wait| wait.has_proposed(cause));
        self.uncommitted.iter().copied().find(has_proposed)
    }

    /// Removes a wait that has been answered.
    pub fn remove(&mut self, number: u64) -> Option<Wait> {
        let wait = self.by_number.remove(&number)?;
        self.uncommitted.remove(&number);
        let target = wait.target();
        for program in target.into_iter().flat_map(|target| target.programs.keys()) {
            remove_from(&mut self.by_program, program, number);
        }
        for group in target.into_iter().flat_map(|target| target.groups.keys()) {
            remove_from(&mut self.by_group, group, number);
        }
        Some(wait)
    }
}

fn remove_from<K: Ord>(index: &mut BTreeMap<K, BTreeSet<u64>>, key: &K, number: u64) {
    if let Some(numbers) = index.get_mut(key) {
        numbers.remove(&number);
        if numbers.is_empty() {
            index.remove(key);
        }
    }
}
