//! Requests that are answered later: when their events are committed, and then when programs have reached a state.

mod pending_requests;

use actix::SpawnHandle;
use gaggled_core::{
    base::ids::{EpochId, Seq},
    control::Wait,
    protocol::Reply,
    state::State,
};
use serde::Serialize;

pub(super) use self::pending_requests::PendingRequests;
use super::ReplyFn;

/// A request that has not been answered.
pub(super) struct PendingRequest {
    id: String,
    key: String,
    /// What it waits for.
    wait: Wait,
    alarm: Option<SpawnHandle>,
    /// What is answered, if not which programs it was about.
    pub body: Option<serde_json::Value>,
    /// Where the answer goes: more than one if the request was sent again.
    pub answers: Vec<ReplyFn>,
}

/// The body of the reply to a command.
#[derive(Serialize)]
struct CommandBody<'a> {
    epoch: EpochId,
    seq: Seq,
    programs: Vec<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<&'a str>,
}

impl PendingRequest {
    pub(super) fn new(id: &str, key: String, wait: Wait, answer: ReplyFn) -> Self {
        Self { id: id.to_owned(), key, wait, alarm: None, body: None, answers: vec![answer] }
    }

    fn done(&self, state: &State) -> Reply {
        if let Some(body) = &self.body {
            return Reply::done(&self.id, body);
        }
        let programs = self.wait.target().into_iter().flat_map(|target| target.programs.keys());
        let programs = programs.map(|id| &*state.graph.programs[*id].name).collect();
        let groups = self.wait.target().into_iter().flat_map(|target| target.groups.keys());
        let groups = groups.map(|id| &*state.graph.groups[*id].name).collect();
        Reply::done(&self.id, &CommandBody { epoch: state.epoch, seq: state.seq, programs, groups })
    }
}
