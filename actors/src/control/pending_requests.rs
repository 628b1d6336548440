//! Requests that are answered later: when their events are committed, and then when programs have reached a state.

use std::collections::BTreeMap;

use actix::SpawnHandle;
use gaggled_core::{
    base::time::Instant,
    control::{Progress, Wait, Waits},
    event::{Cause, Envelope},
    journal::Refusal,
    protocol::{CommandBody, ErrorCode, Reply},
    state::State,
};

use super::messages::ReplyFn;

/// A request that has not been answered.
pub(super) struct PendingRequest {
    pub id: String,
    /// Identifies a request that is sent again; empty if it may be carried out twice.
    pub key: String,
    pub timeout: Option<SpawnHandle>,
    /// The body of the reply, if it is not that of a command to programs.
    pub body: Option<serde_json::Value>,
    /// Where the reply goes: more than one if the request was sent again.
    pub replies: Vec<ReplyFn>,
}

impl PendingRequest {
    pub(super) fn new(id: &str, key: String, reply: ReplyFn) -> Self {
        Self { id: id.to_owned(), key, timeout: None, body: None, replies: vec![reply] }
    }

    fn done(&self, wait: Option<&Wait>, state: &State) -> Reply {
        if let Some(body) = &self.body {
            return Reply::done(&self.id, body);
        }
        let target = wait.and_then(Wait::target);
        let programs = target.into_iter().flat_map(|target| target.programs.keys());
        let programs = programs.map(|id| state.graph.programs[*id].name.to_string()).collect();
        let groups = target.into_iter().flat_map(|target| target.groups.keys());
        let groups = groups.map(|id| state.graph.groups[*id].name.to_string()).collect();
        Reply::done(&self.id, &CommandBody { epoch: state.epoch, seq: state.seq, programs, groups })
    }
}

/// All requests that have not been answered.
#[derive(Default)]
pub(super) struct PendingRequests {
    requests: BTreeMap<u64, PendingRequest>,
    waits: Waits,
    /// Replies that were sent since they were last taken, by the keys of their requests.
    answered: Vec<(String, Reply)>,
    /// Timeouts that are no longer needed.
    timeouts: Vec<SpawnHandle>,
}

impl PendingRequests {
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    pub(super) fn by_key(&mut self, key: &str) -> Option<&mut PendingRequest> {
        self.requests.values_mut().find(|request| request.key == key)
    }

    /// Adds a request; its number if it is not answered at once.
    pub(super) fn add(&mut self, request: PendingRequest, wait: Wait, state: &State) -> Option<u64> {
        let (number, progress) = self.waits.add(wait, state);
        self.requests.insert(number, request);
        self.settle(number, progress, state);
        self.requests.contains_key(&number).then_some(number)
    }

    pub(super) fn set_timeout(&mut self, number: u64, handle: SpawnHandle) {
        if let Some(request) = self.requests.get_mut(&number) {
            request.timeout = Some(handle);
        }
    }

    /// An event was committed and applied.
    pub(super) fn committed(&mut self, envelope: &Envelope, state: &State) {
        for (number, progress) in self.waits.committed(envelope, state) {
            self.settle(number, progress, state);
        }
    }

    fn settle(&mut self, number: u64, progress: Progress, state: &State) {
        let Some(request) = self.requests.get(&number) else { return };
        let reply = match progress {
            Progress::Pending => return,
            Progress::Done => request.done(self.waits.get(number), state),
            Progress::Failed(why) => Reply::refused(&request.id, ErrorCode::Failed, why),
        };
        self.answer(number, &reply);
    }

    /// An event that a command has proposed was refused.
    pub(super) fn refused(&mut self, cause: &Cause, refusal: &Refusal) {
        let number = self.waits.refused(cause);
        let Some((number, request)) = number.and_then(|number| Some((number, self.requests.get(&number)?))) else {
            return;
        };
        let code = if *refusal == Refusal::ShuttingDown { ErrorCode::ShuttingDown } else { ErrorCode::Failed };
        let reply = Reply::refused(&request.id, code, refusal.to_string());
        self.answer(number, &reply);
    }

    /// A request has timed out.
    pub(super) fn time_out(&mut self, number: u64, state: &State, now: Instant) {
        let Some(request) = self.requests.get_mut(&number) else { return };
        request.timeout = None;
        let late = self.waits.get(number).map(|wait| wait.late(state, now)).unwrap_or_default();
        let reply = Reply::refused(&request.id, ErrorCode::TimedOut, late);
        self.answer(number, &reply);
    }

    /// Answers everything: gaggled has ended.
    pub(super) fn dismiss(&mut self) {
        while let Some((number, request)) = self.requests.first_key_value() {
            let reply = Reply::refused(&request.id, ErrorCode::ShuttingDown, "gaggled has ended");
            self.answer(*number, &reply);
        }
    }

    fn answer(&mut self, number: u64, reply: &Reply) {
        self.waits.remove(number);
        let Some(request) = self.requests.remove(&number) else { return };
        self.timeouts.extend(request.timeout);
        for answer in request.replies {
            answer(reply.clone());
        }
        self.answered.push((request.key, reply.clone()));
    }

    /// The replies that were sent since the last time.
    pub(super) fn take_answered(&mut self) -> Vec<(String, Reply)> {
        std::mem::take(&mut self.answered)
    }

    /// Timeouts that are no longer needed.
    pub(super) fn take_timeouts(&mut self) -> Vec<SpawnHandle> {
        std::mem::take(&mut self.timeouts)
    }
}
