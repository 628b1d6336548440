//! What a request leads to.

use gaggled_core::{
    command::DEFAULT_TIMEOUT,
    event::{Event, ProgramEvent, SystemEvent},
    host::Signal,
    ids::ProgramId,
    time::Millis,
    wire::{Action, ErrorCode, Goal, Reply, ReplyError},
};

use super::{
    ControlActor, Renew, Renewed,
    librarian::{Concluded, Job},
    past,
    selection::Chosen,
    waiter::Target,
};

/// What a request leads to.
pub(super) enum Course {
    Answer(Reply),
    /// Programs have to reach a state.
    Await(Target, Millis),
    /// Events have to be committed.
    Propose(Proposal),
    /// It takes its time, and another thread.
    Elsewhere(Job),
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
    pub(super) fn course(&self, id: &str, action: Action) -> Result<Course, ReplyError> {
        if let Action::Dump { at, .. } | Action::Why { at, .. } = &action {
            self.past_only(*at)?;
        }
        match action {
            Action::Dump { at: Some(at), programs, .. } => Ok(self.past_dump(at, programs)),
            Action::Dump { programs, from, limit, at: None } => {
                self.dump(id, &programs, from, limit).map(Course::Answer)
            }
            Action::Why { program, at } => self.why(id, &program, at),
            Action::Events { epoch, since, limit, program, from, until } => {
                let program = self.matcher(program)?;
                Ok(self.events(id, epoch, since, limit, past::Filter { program, from, until }))
            }
            Action::Snapshot => Ok(Course::Answer(Reply::done(id, &self.state))),
            Action::Status => Ok(Course::Answer(self.status(id))),
            Action::Wait { programs, goal, timeout_ms } => {
                let mut chosen = self.choose(&programs)?;
                if programs.is_empty() && goal == Goal::Up {
                    self.leave_out_unwanted(&mut chosen);
                }
                let target = Target::new(chosen, goal).named(&programs);
                Ok(Course::Await(target, timeout_ms.unwrap_or(DEFAULT_TIMEOUT)))
            }
            Action::Up(selection) => {
                self.refuse_in_shutdown()?;
                self.up(&selection).map(Course::Propose)
            }
            Action::Down(selection) => self.down(&selection).map(Course::Propose),
            Action::Restart(selection) => {
                self.refuse_in_shutdown()?;
                self.restart(&selection).map(Course::Propose)
            }
            Action::Tell { group, level, wait, timeout_ms } => {
                self.refuse_in_shutdown()?;
                self.tell(&group, &level, wait, timeout_ms).map(Course::Propose)
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
                Ok(Course::Propose(Proposal { events, ..Proposal::default() }))
            }
            Action::Shutdown { wait, timeout_ms } => self.shutdown(wait, timeout_ms).map(Course::Propose),
            Action::Plan { file } => Ok(self.renew(Renew::Plan { file })),
            Action::Reload { file } => {
                self.refuse_in_shutdown()?;
                Ok(self.renew(Renew::Reload { file }))
            }
            Action::Upgrade { binary } => {
                self.refuse_in_shutdown()?;
                Ok(self.renew(Renew::Upgrade { binary }))
            }
        }
    }

    fn renew(&self, what: Renew) -> Course {
        let (renewal, state) = (self.renewal.clone(), self.state.clone());
        Course::Elsewhere(Box::new(move |id| match renewal(what, &state) {
            Ok(Renewed { body, handover: None }) => Concluded::Answer(Reply::done(id, &body)),
            Ok(Renewed { body, handover: Some(to) }) => Concluded::Handover(to, body),
            Err(error) => Concluded::Answer(Reply::refused(id, error.code, error.message)),
        }))
    }

    fn shutdown(&self, wait: bool, timeout_ms: Option<Millis>) -> Result<Proposal, ReplyError> {
        let begun = self.state.shutdown.is_some();
        if !wait {
            self.refuse_in_shutdown()?;
        }
        let programs = self.state.graph.programs.ids().collect();
        let events = if begun { Vec::new() } else { vec![Event::System(SystemEvent::ShutdownBegun)] };
        let target = wait.then(|| Target::new(Chosen { programs, ..Chosen::default() }, Goal::Down));
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
