//! What a request leads to.

use std::sync::Arc;

use gaggled_core::{
    base::ids::ActorId,
    cluster::{News, Observation},
    protocol::{Action, DEFAULT_TIMEOUT, ErrorCode, Reply, ReplyError},
};
use serde_json::json;

use super::{
    ControlActor, history_queries,
    messages::{Dispatch, HandoverPrepared, HandoverRequest, JobResult},
};
use crate::messages::Observe;

/// How many observations one request may have.
const OBSERVATIONS_MAX: usize = 256;

impl ControlActor {
    /// Decides how a request is answered.
    pub(super) fn dispatch(&self, id: &str, action: Action) -> Result<Dispatch, ReplyError> {
        if let Action::Dump { at, .. } | Action::Why { at, .. } = &action {
            self.past_only(*at)?;
        }
        match action {
            Action::Dump { at: Some(at), programs, .. } => Ok(self.past_dump(at, programs)),
            Action::Dump { programs, from, limit, at: None } => {
                self.dump(id, &programs, from, limit).map(Dispatch::Reply)
            }
            Action::Why { program, at } => self.why(id, &program, at),
            Action::Events { epoch, since, limit, program, from, until } => {
                let program = self.matcher(program)?;
                Ok(self.events(id, epoch, since, limit, history_queries::Filter { program, from, until }))
            }
            Action::Observe { observations } if observations.len() > OBSERVATIONS_MAX => {
                let message = format!("more than {OBSERVATIONS_MAX} observations at once");
                Err(ReplyError { code: ErrorCode::BadRequest, message })
            }
            Action::Observe { observations } => Ok(Dispatch::Reply(self.observe(id, observations))),
            Action::Snapshot => Ok(Dispatch::Reply(Reply::done(id, &self.state))),
            Action::Status => Ok(Dispatch::Reply(self.status(id))),
            Action::Wait { programs, goal, timeout_ms } => {
                let target = self.operator().wait_for(&programs, goal)?;
                Ok(Dispatch::Wait(target, timeout_ms.unwrap_or(DEFAULT_TIMEOUT)))
            }
            Action::Plan { file } => Ok(self.renew(HandoverRequest::Plan { file })),
            Action::Reload { file } => {
                self.operator().refuse_in_shutdown()?;
                Ok(self.renew(HandoverRequest::Reload { file }))
            }
            Action::Configure { revision, part, parts, text } => {
                self.operator().refuse_in_shutdown()?;
                Ok(self.renew(HandoverRequest::Configure { revision, part, parts, text }))
            }
            Action::Upgrade { binary } => {
                self.operator().refuse_in_shutdown()?;
                Ok(self.renew(HandoverRequest::Upgrade { binary }))
            }
            Action::Up(_)
            | Action::Down(_)
            | Action::Restart(_)
            | Action::Tell { .. }
            | Action::Signal { .. }
            | Action::Shutdown { .. } => self.operator().propose(&action).map(Dispatch::Propose),
        }
    }

    /// Passes on what the cluster gateway sees. It sees the programs of its own configuration, which may be another for a
    /// moment: it is told which of them this daemon does not know.
    fn observe(&self, id: &str, observations: Vec<Observation>) -> Reply {
        let graph = &self.state.graph;
        let externals = || graph.programs.iter().filter(|(_, policy)| !policy.is_here()).map(|(id, _)| id);
        let (mut observed, mut unknown) = (Vec::new(), Vec::new());
        for observation in observations {
            match observation {
                Observation::Contact => {
                    observed.extend(externals().map(|id| (ActorId::Program(id), News::Contact)));
                }
                Observation::External { program, sight } => match self.names.get(program.as_str()) {
                    Some(id) if !graph.programs[*id].is_here() => {
                        observed.push((ActorId::Program(*id), News::Sight(sight.cleaned())));
                    }
                    Some(_) | None => unknown.push(program),
                },
                Observation::Claims(sight) => {
                    let sight = Arc::new(sight.cleaned());
                    let shared = graph.groups.iter().filter(|(_, group)| group.tenancy.is_some());
                    let news = |(id, _)| (ActorId::Group(id), News::Claims(sight.clone()));
                    observed.extend(shared.map(news));
                }
            }
        }
        self.journal.do_send(Observe(observed));
        Reply::done(id, &json!({ "unknown": unknown }))
    }

    fn renew(&self, what: HandoverRequest) -> Dispatch {
        let (prepare_handover, state) = (self.prepare_handover.clone(), self.state.clone());
        Dispatch::Offload(Box::new(move |id| match prepare_handover(what, &state) {
            Ok(HandoverPrepared { body, handover: None }) => JobResult::Reply(Reply::done(id, &body)),
            Ok(HandoverPrepared { body, handover: Some(to) }) => JobResult::Handover(to, body),
            Err(error) => JobResult::Reply(Reply::refused(id, error.code, error.message)),
        }))
    }
}
