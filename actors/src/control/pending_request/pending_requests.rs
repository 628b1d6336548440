//! All requests that wait, by what they wait for.

use std::collections::{BTreeMap, BTreeSet};

use actix::SpawnHandle;
use gaggled_core::{
    base::{
        ids::{GroupId, ProgramId},
        time::Instant,
    },
    control::Progress,
    event::{Cause, Envelope, Event},
    journal::Refusal,
    protocol::{ErrorCode, Reply},
    state::State,
};

use super::PendingRequest;

/// All requests that wait.
#[derive(Default)]
pub(in crate::control) struct PendingRequests {
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

impl PendingRequests {
    pub(in crate::control) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(in crate::control) fn is_waiting(&self, number: u64) -> bool {
        self.waiting.contains_key(&number)
    }

    pub(in crate::control) fn by_key(&mut self, key: &str) -> Option<&mut PendingRequest> {
        self.waiting.values_mut().find(|request| request.key == key)
    }

    /// Takes a request in; it may be answered at once.
    pub(in crate::control) fn add(&mut self, request: PendingRequest, state: &State) -> u64 {
        self.next += 1;
        let number = self.next;
        if request.wait.is_uncommitted() {
            self.uncommitted.insert(number);
        }
        for program in request.wait.programs() {
            self.by_program.entry(*program).or_default().insert(number);
        }
        for group in request.wait.groups() {
            self.by_group.entry(*group).or_default().insert(number);
        }
        self.waiting.insert(number, request);
        self.look(number, None, state);
        number
    }

    pub(in crate::control) fn set_alarm(&mut self, number: u64, handle: SpawnHandle) {
        if let Some(request) = self.waiting.get_mut(&number) {
            request.alarm = Some(handle);
        }
    }

    /// An event was committed and applied.
    pub(in crate::control) fn hear(&mut self, envelope: &Envelope, state: &State) {
        let mut concerned: BTreeSet<u64> = BTreeSet::new();
        if matches!(envelope.cause, Cause::Operator { .. }) {
            for number in &self.uncommitted {
                let Some(request) = self.waiting.get_mut(number) else { continue };
                if request.wait.committed(envelope) {
                    concerned.insert(*number);
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

    /// Answers a request if it is done, or never will be: after an event of this program, or whatever has happened.
    fn look(&mut self, number: u64, changed: Option<ProgramId>, state: &State) {
        let Some(request) = self.waiting.get_mut(&number) else { return };
        let progress = request.wait.look(changed, state);
        self.settle(number, progress, state);
    }

    /// The same, after an event of one of its groups.
    fn look_at_groups(&mut self, number: u64, state: &State) {
        let Some(request) = self.waiting.get_mut(&number) else { return };
        let progress = request.wait.look_at_groups(state);
        self.settle(number, progress, state);
    }

    fn settle(&mut self, number: u64, progress: Progress, state: &State) {
        let Some(request) = self.waiting.get(&number) else { return };
        let reply = match progress {
            Progress::Pending => return,
            Progress::Done => request.done(state),
            Progress::Failed(why) => Reply::refused(&request.id, ErrorCode::Failed, why),
        };
        self.answer(number, &reply);
    }

    /// What a command proposed was refused: it will not come about.
    pub(in crate::control) fn decline(&mut self, cause: &Cause, refusal: &Refusal) {
        let meant = |request: &PendingRequest| request.wait.has_proposed(cause);
        let number = self.uncommitted.iter().copied().find(|number| self.waiting.get(number).is_some_and(meant));
        let Some((number, request)) = number.and_then(|number| Some((number, self.waiting.get(&number)?))) else {
            return;
        };
        let code = if *refusal == Refusal::ShuttingDown { ErrorCode::ShuttingDown } else { ErrorCode::Failed };
        let reply = Reply::refused(&request.id, code, refusal.to_string());
        self.answer(number, &reply);
    }

    /// The time of a request is over.
    pub(in crate::control) fn time_out(&mut self, number: u64, state: &State, now: Instant) {
        let Some(request) = self.waiting.get_mut(&number) else { return };
        request.alarm = None;
        let reply = Reply::refused(&request.id, ErrorCode::TimedOut, request.wait.late(state, now));
        self.answer(number, &reply);
    }

    /// Nothing more will happen.
    pub(in crate::control) fn dismiss(&mut self) {
        while let Some((number, request)) = self.waiting.first_key_value() {
            let reply = Reply::refused(&request.id, ErrorCode::ShuttingDown, "gaggled has ended");
            self.answer(*number, &reply);
        }
    }

    fn answer(&mut self, number: u64, reply: &Reply) {
        let Some(request) = self.waiting.remove(&number) else { return };
        self.uncommitted.remove(&number);
        for program in request.wait.target().into_iter().flat_map(|target| target.programs.keys()) {
            if let Some(waiting) = self.by_program.get_mut(program) {
                waiting.remove(&number);
                if waiting.is_empty() {
                    self.by_program.remove(program);
                }
            }
        }
        for group in request.wait.target().into_iter().flat_map(|target| target.groups.keys()) {
            if let Some(waiting) = self.by_group.get_mut(group) {
                waiting.remove(&number);
                if waiting.is_empty() {
                    self.by_group.remove(group);
                }
            }
        }
        self.alarms.extend(request.alarm);
        for answer in request.answers {
            answer(reply.clone());
        }
        self.answered.push((request.key, reply.clone()));
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
