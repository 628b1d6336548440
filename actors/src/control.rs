//! The control actor: answers requests, and turns commands into proposals.
//!
//! It keeps its own copy of the state, so that a query never waits for the journal, and the latest events, to explain
//! causes. A command is answered when its events are committed and written (`reply_gate`), or, if its sender waits, when its
//! target is reached.

mod dispatch;
mod history_queries;
mod messages;
mod pending_requests;
mod queries;
mod reply_gate;
mod worker;

use std::{
    collections::{BTreeSet, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use actix::{Actor, Addr, AsyncContext, Context, Handler, ResponseFuture};
use gaggled_core::{
    base::time::{Instant, Millis},
    control::{Operator, Proposal, Wait},
    event::{Cause, Envelope, Event, SystemEvent},
    journal::history::{CommandKey, History, LoggedEvent},
    protocol::{
        DEFAULT_TIMEOUT, ErrorCode, Reply, ReplyError, Request,
        access::{Peer, Role},
    },
    state::State,
};

pub use self::messages::{
    ControlRequest, ControlServices, DaemonInfo, DrainReplies, HandoverPrepared, HandoverRequest, PrepareHandover,
    ProposalRefused, ReplyFn,
};
use self::{
    messages::{Dispatch, JobFinished, JobResult, RequestContext},
    pending_requests::{PendingRequest, PendingRequests},
    reply_gate::ReplyGate,
    worker::BlockingWorker,
};
use crate::{
    clock::Clock,
    journal::{JournalActor, reader::JournalReader},
    machine_actor::panic_message,
    messages::{Committed, Propose},
};

/// The actor of the control channel.
pub struct ControlActor {
    state: State,
    names: gaggled_core::protocol::ProgramIndex,
    history: History,
    clock: Clock,
    /// When this daemon began.
    began: Instant,
    journal: Addr<JournalActor>,
    pending: PendingRequests,
    reply_gate: ReplyGate,
    /// The latest replies to commands, by client, request id and action.
    answered: VecDeque<(String, Reply)>,
    /// The effects of commands given to previous daemons: a command that is sent again acts only once.
    taken: BTreeSet<CommandKey>,
    /// The number of commands so far, which names commands without an id.
    commands: u64,
    /// Since when refusals are counted, and how many there were.
    refusals: (Instant, u32),
    reader: JournalReader,
    worker: BlockingWorker,
    /// For requests of administrators, so that requests of observers do not delay them.
    handover_worker: BlockingWorker,
    prepare_handover: PrepareHandover,
    info: DaemonInfo,
}

/// Rate limit for `CommandRefused` events: count and window.
const REFUSALS: (u32, Millis) = (10, Millis(10_000));

impl ControlActor {
    /// How many events are kept to answer from.
    pub const HISTORY: usize = 8192;
    /// How many requests may wait for programs at once.
    const WAITERS: usize = 2048;
    /// A query may wait only below this number, so that there is always room for a command.
    const WATCHERS: usize = 1024;
    /// For how long a request may wait.
    const WAIT_MAX: Millis = Millis(3_600_000);
    /// How many answers to commands are kept for requests that are sent again.
    const ANSWERED: usize = 256;
    /// How many requests may wait to be read.
    pub const MAILBOX: usize = 1024;

    /// The actor, with the state before the first event and what is known of the events before that.
    pub fn new(state: State, entries: Vec<LoggedEvent>, means: ControlServices) -> Self {
        let ControlServices { clock, journal, file, reader, prepare_handover, info } = means;
        Self {
            names: state.graph.names().into_iter().filter(|(_, id)| !state.graph.programs[*id].unconfigured).collect(),
            began: clock.now(),
            state,
            clock,
            journal,
            pending: PendingRequests::default(),
            reply_gate: ReplyGate::new(file),
            answered: VecDeque::new(),
            taken: entries.iter().filter_map(LoggedEvent::trace).collect(),
            history: History::with(Self::HISTORY, entries),
            commands: 0,
            refusals: (clock.now(), 0),
            reader,
            worker: BlockingWorker::default(),
            handover_worker: BlockingWorker::default(),
            prepare_handover,
            info,
        }
    }

    fn operator(&self) -> Operator<'_> {
        Operator { state: &self.state, names: &self.names }
    }

    fn ask(&mut self, ControlRequest { peer, request, answer }: ControlRequest, ctx: &mut Context<Self>) {
        if self.state.handover.is_some() {
            // No reply: when this daemon has ended, the client's socket sends the request to the next one.
            return std::mem::forget(answer);
        }
        let Request { id, action, .. } = request;
        let role = action.role();
        if peer.role < role {
            let why = format!("{} may not ask for this", peer.who);
            self.log_refusal(&peer, &id, ErrorCode::Forbidden, &why);
            return answer(Reply::refused(&id, ErrorCode::Forbidden, why));
        }
        let key = if role == Role::Observe || id.is_empty() {
            String::new()
        } else {
            format!("{} {id} {action:?}", peer.who)
        };
        if !key.is_empty() {
            if let Some((_, reply)) = self.answered.iter().find(|(known, _)| *known == key) {
                return answer(reply.clone());
            }
            if let Some(request) = self.pending.by_key(&key) {
                return request.replies.push(self.reply_gate.hold(answer));
            }
        }
        let is_command = role != Role::Observe;
        match self.dispatch(&id, action) {
            Ok(Dispatch::Reply(reply)) => answer(reply),
            Ok(Dispatch::Wait(target, timeout)) if self.pending.len() < Self::WATCHERS => {
                let request = PendingRequest::new(&id, String::new(), answer);
                self.wait(request, Wait::new(Some(target)), timeout, ctx);
            }
            Ok(Dispatch::Propose(proposal)) if self.pending.len() < Self::WAITERS => {
                let answer = self.reply_gate.hold(answer);
                self.propose(&RequestContext { peer, id, key, is_command }, (proposal, None), answer, ctx);
            }
            Ok(Dispatch::Offload(job)) => {
                let thread = if role == Role::Observe { &mut self.worker } else { &mut self.handover_worker };
                thread.give(RequestContext { peer, id, key, is_command }, job, answer, ctx.address().recipient());
            }
            Ok(Dispatch::Wait(..) | Dispatch::Propose(_)) => {
                let error = busy();
                answer(Reply::refused(&id, error.code, error.message));
            }
            Err(error) => answer(Reply::refused(&id, error.code, error.message)),
        }
    }

    /// Proposes the events of a command. `body` is the body of the reply, if it is not that of a command to programs.
    fn propose(
        &mut self,
        asked: &RequestContext,
        (proposal, body): (Proposal, Option<serde_json::Value>),
        answer: ReplyFn,
        ctx: &mut Context<Self>,
    ) {
        let RequestContext { peer, id, key, .. } = asked;
        let Proposal { mut events, mut target, timeout } = proposal;
        let before = events.len();
        events.retain(|event| !self.taken.contains(&CommandKey::new(&peer.who, id, event, &self.state.graph)));
        if events.len() < before {
            // The previous daemon committed these events but could not reply: any run satisfies the target.
            target = target.map(|target| target.after(&self.state, |_| true));
        }
        self.commands += 1;
        let command: Arc<str> = if id.is_empty() { format!("#{}", self.commands).into() } else { id.as_str().into() };
        let cause = Cause::Operator { who: peer.who.as_str().into(), command };
        let wait = Wait::after_commit(target, cause.clone(), events.len());
        let request = PendingRequest { body, ..PendingRequest::new(id, key.clone(), answer) };
        for event in events {
            self.journal.do_send(Propose { from: None, event, cause: cause.clone() });
        }
        self.wait(request, wait, timeout, ctx);
    }

    fn wait(&mut self, request: PendingRequest, wait: Wait, timeout: Millis, ctx: &mut Context<Self>) {
        let number = self.pending.add(request, wait, &self.state);
        self.settle();
        if let Some(number) = number {
            let handle = ctx.run_later(timeout.min(Self::WAIT_MAX).as_duration(), move |act, _| {
                act.pending.time_out(number, &act.state, act.clock.now());
                act.settle();
            });
            self.pending.set_timeout(number, handle);
        }
    }

    /// Remembers the replies to commands that were sent, for requests that are sent again.
    fn settle(&mut self) {
        for (key, reply) in self.pending.take_answered() {
            if !key.is_empty() {
                if self.answered.len() == Self::ANSWERED {
                    self.answered.pop_front();
                }
                self.answered.push_back((key, reply));
            }
        }
    }

    /// Records a refusal in the journal, up to a limit: a client that may only observe could otherwise fill the journal
    /// with them.
    fn log_refusal(&mut self, peer: &Peer, id: &str, code: ErrorCode, why: &str) {
        let now = self.clock.now();
        if now >= self.refusals.0 + REFUSALS.1 {
            self.refusals = (now, 0);
        }
        self.refusals.1 += 1;
        if self.refusals.1 > REFUSALS.0 {
            return;
        }
        let id: String = id.chars().take(64).collect();
        let code =
            serde_json::to_value(code).ok().and_then(|code| code.as_str().map(str::to_owned)).unwrap_or_default();
        let event = Event::System(SystemEvent::CommandRefused { code, reason: why.to_owned() });
        let cause = Cause::Operator { who: peer.who.as_str().into(), command: id.as_str().into() };
        self.journal.do_send(Propose { from: None, event, cause });
    }

    fn committed(&mut self, envelope: Arc<Envelope>, ctx: &mut Context<Self>) {
        self.state.apply(&envelope);
        self.pending.committed(&envelope, &self.state);
        self.history.push(envelope, &self.state);
        for handle in self.pending.take_timeouts() {
            ctx.cancel_future(handle);
        }
        self.settle();
    }
}

fn busy() -> ReplyError {
    ReplyError { code: ErrorCode::Busy, message: "too many requests are waiting already".to_owned() }
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

impl Handler<ControlRequest> for ControlActor {
    type Result = ();
    fn handle(&mut self, ask: ControlRequest, ctx: &mut Context<Self>) {
        // A panic affects only this request: when its responder is dropped, the client gets an error.
        let asked = catch_unwind(AssertUnwindSafe(|| self.ask(ask, ctx)));
        if let Err(panic) = asked {
            let message = panic_message(panic.as_ref());
            let event = Event::System(SystemEvent::ActorPanicked { actor: "Control".to_owned(), message });
            self.journal.do_send(Propose { from: None, event, cause: Cause::Kernel });
        }
    }
}

impl Handler<JobFinished> for ControlActor {
    type Result = ();
    fn handle(&mut self, JobFinished { asked, concluded, answer }: JobFinished, ctx: &mut Context<Self>) {
        match concluded {
            JobResult::Reply(reply) => {
                if let Some(error) = reply.error.as_ref().filter(|_| asked.is_command) {
                    // Logged as well, because a reload by SIGHUP has no client to reply to.
                    self.log_refusal(&asked.peer, &asked.id, error.code, &error.message);
                }
                answer(reply);
            }
            JobResult::Handover(to, body) => {
                let events = vec![Event::System(SystemEvent::HandoverStarted { kind: to })];
                let proposal = Proposal { events, target: None, timeout: DEFAULT_TIMEOUT };
                self.propose(&asked, (proposal, Some(body)), answer, ctx);
            }
        }
    }
}

impl Handler<ProposalRefused> for ControlActor {
    type Result = ();
    fn handle(&mut self, ProposalRefused { cause, refusal }: ProposalRefused, _: &mut Context<Self>) {
        self.pending.refused(&cause, &refusal);
        self.settle();
    }
}

impl Handler<DrainReplies> for ControlActor {
    type Result = ResponseFuture<()>;
    fn handle(&mut self, _: DrainReplies, _: &mut Context<Self>) -> ResponseFuture<()> {
        self.pending.dismiss();
        Box::pin(self.reply_gate.end())
    }
}
