//! The journal actor: every event passes here, is admitted, numbered and applied, and then sent on.

pub mod directory;
mod directory_watch;
mod fsync;
pub mod reader;
mod writer;
pub mod writer_command;
pub mod writer_handle;

use std::sync::Arc;

use actix::{Actor, Context, Handler, Message};
use gaggled_core::{
    base::ids::ActorId,
    cluster::News,
    event::{Cause, Envelope, Event, SystemEvent},
    journal::{Journal, Refusal},
    machine::any::AnyMachine,
    protocol::Permits,
    state::State,
};

use crate::{
    clock::Clock,
    machine_actor::ActorTable,
    messages::{Committed, Flush, Observe, Observed, Panicked, Propose, Refused, Restore, StartMachine},
};

/// Lets the machines start.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct OpenJournal;

/// Receives every event in order, after the machines that it concerns, with the state after it. The list of all is in
/// `tools/src/daemon/run.rs`.
pub type Sink = Box<dyn FnMut(&Arc<Envelope>, &State)>;

/// Receives refusals of proposals that no machine has made.
pub type RefusalHandler = Box<dyn FnMut(&Cause, &Refusal)>;

/// Receives until when this node may run what it has claimed, whenever that changes.
pub type PermitHandler = Box<dyn FnMut(Permits)>;

/// What the journal tells besides the machines.
pub struct JournalOutputs {
    /// The receivers of events.
    pub sinks: Vec<Sink>,
    /// Receives refusals of proposals that no machine has made.
    pub refused: RefusalHandler,
    /// Receives permits.
    pub permitted: PermitHandler,
}

impl JournalOutputs {
    /// Only this receiver of events.
    pub fn only(sink: Sink) -> Self {
        Self { sinks: vec![sink], refused: Box::new(|_, _| {}), permitted: Box::new(|_| {}) }
    }
}

/// The actor of the journal.
pub struct JournalActor {
    journal: Journal,
    /// What was committed before the actors were started.
    opening: Vec<Envelope>,
    clock: Clock,
    routes: ActorTable,
    outputs: JournalOutputs,
}

impl JournalActor {
    /// The actor of a journal that has committed only the opening.
    pub fn new(
        (journal, opening): (Journal, Vec<Envelope>),
        clock: Clock,
        routes: ActorTable,
        outputs: JournalOutputs,
    ) -> Self {
        Self { journal, opening, clock, routes, outputs }
    }

    fn commit(&mut self, event: Event, cause: Cause, from: Option<ActorId>) {
        match self.journal.commit(self.clock.now(), self.clock.wall(), event, cause.clone()) {
            Ok(envelope) => self.send_on(Arc::new(envelope)),
            Err((event, refusal)) => match from {
                Some(actor) => {
                    if let Some(actor) = self.routes.get(actor) {
                        actor.do_send(Refused(event, refusal));
                    }
                }
                None => (self.outputs.refused)(&cause, &refusal),
            },
        }
    }

    fn send_on(&mut self, envelope: Arc<Envelope>) {
        self.journal.state().graph.recipients(&envelope.event, |actor| {
            if let Some(actor) = self.routes.get(actor) {
                actor.do_send(Committed(envelope.clone()));
            }
        });
        for sink in &mut self.outputs.sinks {
            sink(&envelope, self.journal.state());
        }
    }
}

impl Actor for JournalActor {
    type Context = Context<Self>;
}

impl Handler<OpenJournal> for JournalActor {
    type Result = ();
    fn handle(&mut self, _: OpenJournal, _: &mut Context<Self>) {
        let opening = std::mem::take(&mut self.opening);
        let Some(first) = opening.first().map(|envelope| envelope.seq) else { return };
        for envelope in opening.into_iter().map(Arc::new) {
            for sink in &mut self.outputs.sinks {
                sink(&envelope, self.journal.state());
            }
        }
        self.routes.iter().for_each(|actor| actor.do_send(StartMachine(first)));
    }
}

impl Handler<Flush> for JournalActor {
    type Result = ();
    fn handle(&mut self, _: Flush, _: &mut Context<Self>) {}
}

impl Handler<Propose> for JournalActor {
    type Result = ();
    fn handle(&mut self, Propose { from, event, cause }: Propose, _: &mut Context<Self>) {
        self.commit(event, cause, from);
    }
}

impl Handler<Observe> for JournalActor {
    type Result = ();
    fn handle(&mut self, Observe(observed): Observe, _: &mut Context<Self>) {
        for (actor, news) in observed {
            if let News::Claims(sight) = &news {
                self.journal.permit(sight);
                (self.outputs.permitted)(self.journal.permits());
            }
            if let Some(actor) = self.routes.get(actor) {
                actor.do_send(Observed(news));
            }
        }
    }
}

impl Handler<Panicked> for JournalActor {
    type Result = ();
    fn handle(&mut self, Panicked { actor, message }: Panicked, _: &mut Context<Self>) {
        let event = SystemEvent::ActorPanicked { actor: format!("{actor:?}"), message };
        self.commit(Event::System(event), Cause::Kernel, None);
        let state = self.journal.state();
        if let Some(address) = self.routes.get(actor) {
            address.do_send(Restore(AnyMachine::new(state, actor), state.seq));
        }
    }
}
