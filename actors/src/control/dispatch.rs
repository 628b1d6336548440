//! What a request leads to.

use gaggled_core::protocol::{Action, DEFAULT_TIMEOUT, Reply, ReplyError};

use super::{
    ControlActor, history_queries,
    messages::{Dispatch, HandoverPrepared, HandoverRequest, JobResult},
};

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

    fn renew(&self, what: HandoverRequest) -> Dispatch {
        let (prepare_handover, state) = (self.prepare_handover.clone(), self.state.clone());
        Dispatch::Offload(Box::new(move |id| match prepare_handover(what, &state) {
            Ok(HandoverPrepared { body, handover: None }) => JobResult::Reply(Reply::done(id, &body)),
            Ok(HandoverPrepared { body, handover: Some(to) }) => JobResult::Handover(to, body),
            Err(error) => JobResult::Reply(Reply::refused(id, error.code, error.message)),
        }))
    }
}
