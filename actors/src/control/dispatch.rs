//! What a request leads to.

use gaggled_core::{
    base::{ids::ProgramId, time::Millis},
    event::{Event, ProgramEvent, SystemEvent},
    process::Signal,
    protocol::{Action, DEFAULT_TIMEOUT, ErrorCode, Reply, ReplyError, WaitState},
};

use super::{
    ControlActor, HandoverPrepared, HandoverRequest, history_queries,
    pending_request::Target,
    targets::Targets,
    worker::{Job, JobResult},
};

/// What a request leads to.
pub(super) enum Dispatch {
    ReplyFn(Reply),
    /// Programs have to reach a state.
    Wait(Target, Millis),
    /// Events have to be committed.
    Propose(Proposal),
    /// It takes its time, and another thread.
    Offload(Job),
}

/// What a command proposes, what it waits for after that, and for how long.
pub(super) struct Proposal {
    pub(super) events: Vec<Event>,
    pub(super) target: Option<Target>,
    pub(super) timeout: Millis,
    /// What is answered, if not which programs it was about.
    pub(super) body: Option<serde_json::Value>,
}

impl Default for Proposal {
    fn default() -> Self {
        Self { events: Vec::new(), target: None, timeout: DEFAULT_TIMEOUT, body: None }
    }
}

impl ControlActor {
    /// What a request leads to.
    pub(super) fn course(&self, id: &str, action: Action) -> Result<Dispatch, ReplyError> {
        if let Action::Dump { at, .. } | Action::Why { at, .. } = &action {
            self.past_only(*at)?;
        }
        match action {
            Action::Dump { at: Some(at), programs, .. } => Ok(self.past_dump(at, programs)),
            Action::Dump { programs, from, limit, at: None } => {
                self.dump(id, &programs, from, limit).map(Dispatch::ReplyFn)
            }
            Action::Why { program, at } => self.why(id, &program, at),
            Action::Events { epoch, since, limit, program, from, until } => {
                let program = self.matcher(program)?;
                Ok(self.events(id, epoch, since, limit, history_queries::Filter { program, from, until }))
            }
            Action::Snapshot => Ok(Dispatch::ReplyFn(Reply::done(id, &self.state))),
            Action::Status => Ok(Dispatch::ReplyFn(self.status(id))),
            Action::Wait { programs, goal, timeout_ms } => {
                let mut chosen = self.choose(&programs)?;
                if programs.is_empty() && goal == WaitState::Up {
                    self.leave_out_unwanted(&mut chosen);
                }
                let target = Target::new(chosen, goal).named(&programs);
                Ok(Dispatch::Wait(target, timeout_ms.unwrap_or(DEFAULT_TIMEOUT)))
            }
            Action::Up(selection) => {
                self.refuse_in_shutdown()?;
                self.up(&selection).map(Dispatch::Propose)
            }
            Action::Down(selection) => self.down(&selection).map(Dispatch::Propose),
            Action::Restart(selection) => {
                self.refuse_in_shutdown()?;
                self.restart(&selection).map(Dispatch::Propose)
            }
            Action::Tell { group, level, wait, timeout_ms } => {
                self.refuse_in_shutdown()?;
                self.tell(&group, &level, wait, timeout_ms).map(Dispatch::Propose)
            }
            Action::Signal { programs, signal } => {
                self.refuse_in_shutdown()?;
                let signal = Signal::parse(&signal).ok_or_else(|| ReplyError {
                    code: ErrorCode::BadRequest,
                    message: format!(
                        "signal {signal:?} is not known: write a name such as HUP, or a number from 1 to 64"
                    ),
                })?;
                let events = self.signals(&self.select(&programs)?, signal)?;
                Ok(Dispatch::Propose(Proposal { events, ..Proposal::default() }))
            }
            Action::Shutdown { wait, timeout_ms } => self.shutdown(wait, timeout_ms).map(Dispatch::Propose),
            Action::Plan { file } => Ok(self.renew(HandoverRequest::Plan { file })),
            Action::Reload { file } => {
                self.refuse_in_shutdown()?;
                Ok(self.renew(HandoverRequest::Reload { file }))
            }
            Action::Upgrade { binary } => {
                self.refuse_in_shutdown()?;
                Ok(self.renew(HandoverRequest::Upgrade { binary }))
            }
        }
    }

    fn renew(&self, what: HandoverRequest) -> Dispatch {
        let (renewal, state) = (self.renewal.clone(), self.state.clone());
        Dispatch::Offload(Box::new(move |id| match renewal(what, &state) {
            Ok(HandoverPrepared { body, handover: None }) => JobResult::ReplyFn(Reply::done(id, &body)),
            Ok(HandoverPrepared { body, handover: Some(to) }) => JobResult::Handover(to, body),
            Err(error) => JobResult::ReplyFn(Reply::refused(id, error.code, error.message)),
        }))
    }

    fn shutdown(&self, wait: bool, timeout_ms: Option<Millis>) -> Result<Proposal, ReplyError> {
        let begun = self.state.shutdown.is_some();
        if !wait {
            self.refuse_in_shutdown()?;
        }
        let programs = self.state.graph.programs.ids().collect();
        let events = if begun { Vec::new() } else { vec![Event::System(SystemEvent::ShutdownStarted)] };
        let target = wait.then(|| Target::new(Targets { programs, ..Targets::default() }, WaitState::Down));
        Ok(Proposal { events, target, timeout: timeout_ms.unwrap_or(DEFAULT_TIMEOUT), body: None })
    }

    fn refuse_in_shutdown(&self) -> Result<(), ReplyError> {
        if self.state.shutdown.is_some() {
            let message = "gaggled is shutting down".to_owned();
            return Err(ReplyError { code: ErrorCode::ShuttingDown, message });
        }
        Ok(())
    }

    fn signals(&self, programs: &[ProgramId], signal: Signal) -> Result<Vec<Event>, ReplyError> {
        let up = programs.iter().filter(|id| self.state.programs[**id].pid.is_some());
        let events: Vec<Event> = up
            .map(|id| {
                Event::Program(*id, ProgramEvent::Signalled { instance: self.state.programs[*id].instance, signal })
            })
            .collect();
        if events.is_empty() {
            let message = "none of these programs is up".to_owned();
            return Err(ReplyError { code: ErrorCode::Failed, message });
        }
        Ok(events)
    }
}
