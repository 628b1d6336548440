//! All requests that wait, by what they wait for.

use std::collections::{BTreeMap, BTreeSet};

use actix::SpawnHandle;
use gaggled_core::{
    base::{
        ids::{GroupId, ProgramId},
        time::Instant,
    },
    event::{Cause, Envelope, Event},
    journal::Refusal,
    protocol::{ErrorCode, Reply, View, WaitState},
    state::State,
};

use super::PendingRequest;

/// All requests that wait.
#[derive(Default)]
pub(in crate::control) struct Waiters {
    next: u64,
    waiting: BTreeMap<u64, PendingRequest>,
    /// Who waits for a program.
    by_program: BTreeMap<ProgramId, BTreeSet<u64>>,
    /// Who waits for a group.
    by_group: BTreeMap<GroupId, BTreeSet<u64>>,
    /// Who waits for events to be committed.
    uncommitted: BTreeSet<u64>,
    answered: Vec<(String, Reply)>,
    alarms: Vec<SpawnHandle>,
}

impl Waiters {
    pub(in crate::control) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(in crate::control) fn is_waiting(&self, number: u64) -> bool {
        self.waiting.contains_key(&number)
    }

    pub(in crate::control) fn by_key(&mut self, key: &str) -> Option<&mut PendingRequest> {
        self.waiting.values_mut().find(|waiter| waiter.key == key)
    }

    /// Takes a request in; it may be answered at once.
    pub(in crate::control) fn add(&mut self, waiter: PendingRequest, state: &State) -> u64 {
        self.next += 1;
        let number = self.next;
        if waiter.uncommitted.is_some() {
            self.uncommitted.insert(number);
        }
        for program in &waiter.missing {
            self.by_program.entry(*program).or_default().insert(number);
        }
        for group in &waiter.missing_groups {
            self.by_group.entry(*group).or_default().insert(number);
        }
        self.waiting.insert(number, waiter);
        self.look(number, None, state);
        number
    }

    pub(in crate::control) fn set_alarm(&mut self, number: u64, handle: SpawnHandle) {
        if let Some(waiter) = self.waiting.get_mut(&number) {
            waiter.alarm = Some(handle);
        }
    }

    /// An event was committed and applied.
    pub(in crate::control) fn hear(&mut self, envelope: &Envelope, state: &State) {
        let mut concerned: BTreeSet<u64> = BTreeSet::new();
        if matches!(envelope.cause, Cause::Operator { .. }) {
            for number in &self.uncommitted {
                let Some(waiter) = self.waiting.get_mut(number) else { continue };
                if let Some((cause, left)) = &mut waiter.uncommitted
                    && *cause == envelope.cause
                {
                    *left -= 1;
                    if *left == 0 {
                        waiter.uncommitted = None;
                        concerned.insert(*number);
                    }
                }
            }
            self.uncommitted.retain(|number| !concerned.contains(number));
        }
        for number in concerned {
            self.look(number, None, state);
        }
        let group = match &envelope.event {
            Event::Group(group, _) => Some(*group),
            Event::Program(program, _) => state.graph.programs[*program].group,
            Event::Dependency(..) | Event::System(_) => None,
        };
        let waiting = group.and_then(|group| self.by_group.get(&group)).cloned();
        for number in waiting.into_iter().flatten() {
            self.look_at_groups(number, state);
        }
        let subject = state.graph.subject(&envelope.event);
        let waiting = subject.and_then(|program| self.by_program.get(&program)).cloned();
        for number in waiting.into_iter().flatten() {
            self.look(number, subject, state);
        }
    }

    /// Looks whether a request can be answered: all its programs, or the one that has changed.
    fn look(&mut self, number: u64, changed: Option<ProgramId>, state: &State) {
        let Some(waiter) = self.waiting.get_mut(&number) else { return };
        if waiter.uncommitted.is_some() {
            return;
        }
        let candidates: Vec<ProgramId> = match changed {
            Some(program) => vec![program],
            None => waiter.missing.iter().copied().collect(),
        };
        for program in candidates {
            match waiter.program_done(program, state) {
                Ok(false) => {
                    waiter.missing.insert(program);
                }
                Ok(true) => {
                    waiter.missing.remove(&program);
                }
                Err(why) => {
                    let reply = Reply::refused(&waiter.id, ErrorCode::Failed, why);
                    return self.answer(number, &reply);
                }
            }
        }
        if changed.is_none() || waiter.missing.is_empty() {
            self.look_at_groups(number, state);
        }
    }

    /// Looks whether the groups that a request waits for are there, and with them everything.
    fn look_at_groups(&mut self, number: u64, state: &State) {
        let Some(waiter) = self.waiting.get_mut(&number).filter(|waiter| waiter.uncommitted.is_none()) else { return };
        for group in waiter.missing_groups.clone() {
            match waiter.group_done(group, state) {
                Ok(true) => drop(waiter.missing_groups.remove(&group)),
                Ok(false) => {}
                Err(why) => {
                    let reply = Reply::refused(&waiter.id, ErrorCode::Failed, why);
                    return self.answer(number, &reply);
                }
            }
        }
        if waiter.missing.is_empty() && waiter.missing_groups.is_empty() {
            let reply = waiter.done(state);
            self.answer(number, &reply);
        }
    }

    /// What a command proposed was refused: it will not come about.
    pub(in crate::control) fn decline(&mut self, cause: &Cause, refusal: &Refusal) {
        let meant = |waiter: &PendingRequest| waiter.uncommitted.as_ref().is_some_and(|(own, _)| own == cause);
        let number = self.uncommitted.iter().copied().find(|number| self.waiting.get(number).is_some_and(meant));
        let Some((number, waiter)) = number.and_then(|number| Some((number, self.waiting.get(&number)?))) else {
            return;
        };
        let code = if *refusal == Refusal::ShuttingDown { ErrorCode::ShuttingDown } else { ErrorCode::Failed };
        let reply = Reply::refused(&waiter.id, code, refusal.to_string());
        self.answer(number, &reply);
    }

    /// The time of a request is over.
    pub(in crate::control) fn time_out(&mut self, number: u64, state: &State, now: Instant) {
        let Some(waiter) = self.waiting.get_mut(&number) else { return };
        waiter.alarm = None;
        let view = View::at(state, now);
        let mut late: Vec<String> = waiter
            .missing
            .iter()
            .take(5)
            .map(|program| {
                let program = view.program(*program);
                if program.reason.is_empty() {
                    program.program.to_owned()
                } else {
                    format!("{} ({})", program.program, program.reason)
                }
            })
            .collect();
        late.extend(waiter.missing_groups.iter().take(5).map(|group| {
            let group = view.group(*group);
            let reason = if group.reason.is_empty() { String::new() } else { format!(" ({})", group.reason) };
            format!("group {}{reason}", group.group)
        }));
        if waiter.missing.len() > late.len() {
            late.push(format!("and {} more", waiter.missing.len() - late.len()));
        }
        let goal =
            if waiter.target.as_ref().is_some_and(|target| target.goal == WaitState::Down) { "down" } else { "up" };
        let reply = Reply::refused(&waiter.id, ErrorCode::TimedOut, format!("not {goal} in time: {}", late.join(", ")));
        self.answer(number, &reply);
    }

    /// Nothing more will happen.
    pub(in crate::control) fn dismiss(&mut self) {
        while let Some((number, waiter)) = self.waiting.first_key_value() {
            let reply = Reply::refused(&waiter.id, ErrorCode::ShuttingDown, "gaggled has ended");
            self.answer(*number, &reply);
        }
    }

    fn answer(&mut self, number: u64, reply: &Reply) {
        let Some(waiter) = self.waiting.remove(&number) else { return };
        self.uncommitted.remove(&number);
        for program in waiter.target.iter().flat_map(|target| target.programs.keys()) {
            if let Some(waiting) = self.by_program.get_mut(program) {
                waiting.remove(&number);
                if waiting.is_empty() {
                    self.by_program.remove(program);
                }
            }
        }
        for group in waiter.target.iter().flat_map(|target| target.groups.keys()) {
            if let Some(waiting) = self.by_group.get_mut(group) {
                waiting.remove(&number);
                if waiting.is_empty() {
                    self.by_group.remove(group);
                }
            }
        }
        self.alarms.extend(waiter.alarm);
        for answer in waiter.answers {
            answer(reply.clone());
        }
        self.answered.push((waiter.key, reply.clone()));
    }

    /// The answers that were sent since the last time.
    pub(in crate::control) fn take_answered(&mut self) -> Vec<(String, Reply)> {
        std::mem::take(&mut self.answered)
    }

    /// Alarms that are no longer needed.
    pub(in crate::control) fn take_alarms(&mut self) -> Vec<SpawnHandle> {
        std::mem::take(&mut self.alarms)
    }
}
