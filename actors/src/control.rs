//! The control actor: answers requests, and turns commands into proposals.
//!
//! It keeps a fold of its own, so that a question never waits for the journal, and the last events, so that it can say
//! why. A command is answered when its events are committed, or, if its sender waits, when the programs are there.

mod ask;
mod selection;
mod waiter;

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message};
use gaggled_core::{
    command::{DEFAULT_TIMEOUT, Peer, Role, Selection},
    event::{Cause, Envelope, Event, ProgramEvent, SystemEvent},
    history::History,
    host::Signal,
    ids::ProgramId,
    rules::Refusal,
    state::{ProgramState, State},
    time::Millis,
    wire::{Action, ErrorCode, Goal, Reply, ReplyError, Request},
};

use self::waiter::{Target, Waiter, Waiters};
use crate::{
    clock::Clock,
    journal::{JournalActor, Propose},
    shell::{Committed, panic_message},
};

/// Sends the answer to a request. It may be called at any time, from any thread, once.
pub type Answer = Box<dyn FnOnce(Reply) + Send>;

/// A request.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Ask {
    /// Who asks.
    pub peer: Peer,
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub answer: Answer,
}

/// What a command proposed was refused.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Declined {
    /// The cause that the proposal had.
    pub cause: Cause,
    /// Why.
    pub refusal: Refusal,
}

/// Everything has stopped. When this has been handled, whatever was asked before has been answered.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Farewell;

/// What the daemon says of itself.
#[derive(Clone, Debug)]
pub struct About {
    /// The version of gaggled.
    pub version: &'static str,
    /// Its process id.
    pub pid: u32,
    /// Where events are published.
    pub eventurl: String,
    /// Where requests are answered.
    pub controlurl: String,
}

/// The actor of the control channel.
pub struct ControlActor {
    state: State,
    names: gaggled_core::wire::Names,
    history: History,
    clock: Clock,
    journal: Addr<JournalActor>,
    waiters: Waiters,
    /// The commands that were answered last, by who gave them and their id.
    answered: VecDeque<(String, Reply)>,
    /// Commands that go without an id of their own are numbered.
    commands: u64,
    about: About,
}

impl ControlActor {
    /// How many events are kept to answer from.
    pub const HISTORY: usize = 8192;
    /// How many requests may wait for programs at once.
    const WAITERS: usize = 2048;
    /// How many of them may only look, so that there is always room for a command.
    const WATCHERS: usize = 1024;
    /// For how long a request may wait.
    const LONGEST: Millis = Millis(3_600_000);
    /// How many answers to commands are kept for requests that are sent again.
    const ANSWERED: usize = 256;
    /// How many requests may wait to be read.
    pub const MAILBOX: usize = 1024;

    /// The actor, with the state before the first event.
    pub fn new(state: State, clock: Clock, journal: Addr<JournalActor>, about: About) -> Self {
        Self {
            names: state.graph.names(),
            state,
            history: History::new(Self::HISTORY),
            clock,
            journal,
            waiters: Waiters::default(),
            answered: VecDeque::new(),
            commands: 0,
            about,
        }
    }

    fn ask(&mut self, Ask { peer, request, answer }: Ask, ctx: &mut Context<Self>) {
        let Request { id, action, .. } = request;
        if peer.role < action.role() {
            let why = format!("{} may not ask for this", peer.who);
            self.refuse_aloud(&peer, &id, ErrorCode::Forbidden, &why);
            return answer(Reply::refused(&id, ErrorCode::Forbidden, why));
        }
        if action.role() == Role::Observe {
            return self.observe(&id, action, answer, ctx);
        }
        let key = format!("{} {id} {action:?}", peer.who);
        if !id.is_empty() {
            if let Some((_, reply)) = self.answered.iter().find(|(known, _)| *known == key) {
                return answer(reply.clone());
            }
            if let Some(waiter) = self.waiters.by_key(&key) {
                return waiter.answers.push(answer);
            }
        }
        if let Err(error) = self.command(&peer, &id, &key, action, answer, ctx) {
            let (answer, error) = *error;
            answer(Reply::refused(&id, error.code, error.message));
        }
    }

    /// Questions that change nothing.
    fn observe(&mut self, id: &str, action: Action, answer: Answer, ctx: &mut Context<Self>) {
        let reply = match action {
            Action::Dump { programs, from, limit } => self.dump(id, &programs, from, limit),
            Action::Why { program } => self.why(id, &program),
            Action::Events { epoch, since, limit, program } => self.events(id, epoch, since, limit, program.as_deref()),
            Action::Snapshot => Ok(Reply::done(id, &self.state)),
            Action::Status => Ok(self.status(id)),
            Action::Wait { programs, goal, timeout_ms } => {
                let selected = if self.waiters.len() < Self::WATCHERS { self.select(&programs) } else { Err(busy()) };
                return match selected {
                    Ok(programs) => {
                        let target = Target { programs: programs.into_iter().map(|id| (id, 0)).collect(), goal };
                        let waiter = Waiter::new(id, String::new(), Some(target), answer);
                        self.wait(waiter, timeout_ms.unwrap_or(DEFAULT_TIMEOUT), ctx);
                    }
                    Err(error) => answer(Reply::refused(id, error.code, error.message)),
                };
            }
            Action::Up(_) | Action::Down(_) | Action::Restart(_) | Action::Signal { .. } | Action::Shutdown { .. } => {
                Err(ReplyError { code: ErrorCode::BadRequest, message: "this is a command".to_owned() })
            }
        };
        answer(reply.unwrap_or_else(|error| Reply::refused(id, error.code, error.message)));
    }

    fn command(
        &mut self,
        peer: &Peer,
        id: &str,
        key: &str,
        action: Action,
        answer: Answer,
        ctx: &mut Context<Self>,
    ) -> Result<(), Box<(Answer, ReplyError)>> {
        let planned = self.plan(action);
        let (events, target, timeout) = match planned {
            Ok(plan) => plan,
            Err(error) => return Err(Box::new((answer, error))),
        };
        if self.waiters.len() >= Self::WAITERS {
            return Err(Box::new((answer, busy())));
        }
        self.commands += 1;
        let command: Arc<str> = if id.is_empty() { format!("#{}", self.commands).into() } else { id.into() };
        let cause = Cause::Operator { who: peer.who.as_str().into(), command };
        let key = if id.is_empty() { String::new() } else { key.to_owned() };
        let mut waiter = Waiter::new(id, key, target, answer);
        waiter.expect(cause.clone(), events.len());
        for event in events {
            self.journal.do_send(Propose { from: None, event, cause: cause.clone() });
        }
        self.wait(waiter, timeout, ctx);
        Ok(())
    }

    /// What a command proposes, what it waits for after that, and for how long.
    fn plan(&self, action: Action) -> Result<(Vec<Event>, Option<Target>, Millis), ReplyError> {
        let again = matches!(action, Action::Shutdown { wait: true, .. });
        if self.state.shutdown.is_some() && !again && !matches!(action, Action::Down(_)) {
            let message = "gaggled is shutting down".to_owned();
            return Err(ReplyError { code: ErrorCode::ShuttingDown, message });
        }
        let timeout = |selection: &Selection| selection.timeout_ms.unwrap_or(DEFAULT_TIMEOUT);
        match action {
            Action::Up(selection) => {
                let (events, target) = self.planned(&selection, &ProgramEvent::OperatorStarted, Goal::Up)?;
                let target = target.map(|target| target.after(&self.state, ProgramState::is_steady));
                Ok((events, target, timeout(&selection)))
            }
            Action::Down(selection) => {
                let (events, target) = self.planned(&selection, &ProgramEvent::OperatorStopped, Goal::Down)?;
                Ok((events, target, timeout(&selection)))
            }
            Action::Restart(selection) => {
                let (events, target) = self.planned(&selection, &ProgramEvent::OperatorRestarted, Goal::Up)?;
                Ok((events, target.map(|target| target.after(&self.state, |_| false)), timeout(&selection)))
            }
            Action::Signal { programs, signal } => {
                let Some(signal) = Signal::parse(&signal) else {
                    let message =
                        format!("signal {signal:?} is not known: write a name such as HUP, or a number from 1 to 64");
                    return Err(ReplyError { code: ErrorCode::BadRequest, message });
                };
                let events = self.signals(&self.select(&programs)?, signal)?;
                Ok((events, None, DEFAULT_TIMEOUT))
            }
            Action::Shutdown { wait, timeout_ms } => {
                let programs = self.state.graph.programs.ids().map(|id| (id, 0)).collect();
                let target = wait.then_some(Target { programs, goal: Goal::Down });
                let events = if self.state.shutdown.is_some() {
                    Vec::new()
                } else {
                    vec![Event::System(SystemEvent::ShutdownBegun)]
                };
                Ok((events, target, timeout_ms.unwrap_or(DEFAULT_TIMEOUT)))
            }
            Action::Wait { .. }
            | Action::Dump { .. }
            | Action::Why { .. }
            | Action::Events { .. }
            | Action::Snapshot
            | Action::Status => Ok((Vec::new(), None, DEFAULT_TIMEOUT)),
        }
    }

    fn planned(
        &self,
        selection: &Selection,
        event: &ProgramEvent,
        goal: Goal,
    ) -> Result<(Vec<Event>, Option<Target>), ReplyError> {
        let programs = self.select(&selection.programs)?;
        let events = programs.iter().map(|id| Event::Program(*id, event.clone())).collect();
        let target = Target { programs: programs.into_iter().map(|id| (id, 0)).collect(), goal };
        Ok((events, selection.wait.then_some(target)))
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

    fn wait(&mut self, waiter: Waiter, timeout: Millis, ctx: &mut Context<Self>) {
        let number = self.waiters.add(waiter, &self.state);
        self.settle();
        if self.waiters.is_waiting(number) {
            let handle = ctx.run_later(timeout.min(Self::LONGEST).as_duration(), move |act, _| {
                act.waiters.time_out(number, &act.state, act.clock.now());
                act.settle();
            });
            self.waiters.set_alarm(number, handle);
        }
    }

    /// Sends the answers that have become due, and remembers those to commands.
    fn settle(&mut self) {
        for (key, reply) in self.waiters.take_answered() {
            if !key.is_empty() {
                if self.answered.len() == Self::ANSWERED {
                    self.answered.pop_front();
                }
                self.answered.push_back((key, reply));
            }
        }
    }

    fn refuse_aloud(&self, peer: &Peer, id: &str, code: ErrorCode, why: &str) {
        let code =
            serde_json::to_value(code).ok().and_then(|code| code.as_str().map(str::to_owned)).unwrap_or_default();
        let event = Event::System(SystemEvent::CommandRefused { code, why: why.to_owned() });
        let cause = Cause::Operator { who: peer.who.as_str().into(), command: id.into() };
        self.journal.do_send(Propose { from: None, event, cause });
    }

    fn committed(&mut self, envelope: Arc<Envelope>, ctx: &mut Context<Self>) {
        self.state.apply(&envelope);
        self.waiters.hear(&envelope, &self.state);
        self.history.push(envelope, &self.state);
        for handle in self.waiters.take_alarms() {
            ctx.cancel_future(handle);
        }
        self.settle();
    }
}

fn busy() -> ReplyError {
    ReplyError { code: ErrorCode::Busy, message: "too many requests wait already".to_owned() }
}

impl Actor for ControlActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(Self::MAILBOX);
    }
}

impl Handler<Committed> for ControlActor {
    type Result = ();
    fn handle(&mut self, Committed(envelope): Committed, ctx: &mut Context<Self>) {
        self.committed(envelope, ctx);
    }
}

impl Handler<Ask> for ControlActor {
    type Result = ();
    fn handle(&mut self, ask: Ask, ctx: &mut Context<Self>) {
        // A request that meets a bug costs its own answer and no other: the answer that is dropped says so.
        let asked = catch_unwind(AssertUnwindSafe(|| self.ask(ask, ctx)));
        if let Err(panic) = asked {
            let message = panic_message(panic.as_ref());
            let event = Event::System(SystemEvent::ActorPanicked { actor: "Control".to_owned(), message });
            self.journal.do_send(Propose { from: None, event, cause: Cause::Os });
        }
    }
}

impl Handler<Declined> for ControlActor {
    type Result = ();
    fn handle(&mut self, Declined { cause, refusal }: Declined, _: &mut Context<Self>) {
        self.waiters.decline(&cause, &refusal);
        self.settle();
    }
}

impl Handler<Farewell> for ControlActor {
    type Result = ();
    fn handle(&mut self, _: Farewell, _: &mut Context<Self>) {
        self.waiters.dismiss();
    }
}
