//! The journal actor: every event passes here, is admitted, numbered and applied, and then sent on.

pub mod directory;
pub mod file;
mod fsync;
mod place;
pub mod reader;
mod writer;

use std::sync::Arc;

use actix::{Actor, Addr, Context, Handler, Message};
use gaggled_core::{
    base::ids::{ActorId, DependencyId, GroupId, IdVec, ProgramId},
    event::{Cause, Envelope, Event, SystemEvent},
    journal::{Journal, Refusal},
    machine::{
        Machine, dependency::DependencyMachine, group::GroupMachine, program::ProgramMachine, shutdown::ShutdownMachine,
    },
    state::State,
};

use crate::{
    clock::Clock,
    machine_actor::{
        Committed, DependencyActor, Flush, GroupActor, ProgramActor, Refused, Restore, ShutdownActor, StartMachine,
    },
};

/// A fact that somebody takes for the next one.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Propose {
    /// Who is to be told if it is refused.
    pub from: Option<ActorId>,
    /// The fact.
    pub event: Event,
    /// Why.
    pub cause: Cause,
}

/// A machine panicked and has to be built anew.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Panicked {
    /// Whose.
    pub actor: ActorId,
    /// What the panic said.
    pub message: String,
}

/// The addresses of all shells.
#[derive(Clone, Debug, Default)]
pub struct ActorTable {
    /// The programs.
    pub programs: IdVec<ProgramId, Addr<ProgramActor>>,
    /// The dependencies.
    pub dependencies: IdVec<DependencyId, Addr<DependencyActor>>,
    /// The groups.
    pub groups: IdVec<GroupId, Addr<GroupActor>>,
    /// The end.
    pub shutdown: Option<Addr<ShutdownActor>>,
}

/// The life of the daemon may begin.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct OpenJournal;

/// Hears every event in order, after everybody whom it concerns, with the fold up to it.
pub type Sink = Box<dyn FnMut(&Arc<Envelope>, &State)>;

/// Hears what was refused to those who are no actors of their own.
pub type RefusalHandler = Box<dyn FnMut(&Cause, &Refusal)>;

/// The actor of the journal.
pub struct JournalActor {
    journal: Journal,
    /// What was committed before there was anybody to hear it.
    opening: Vec<Envelope>,
    clock: Clock,
    routes: ActorTable,
    sinks: Vec<Sink>,
    decline: RefusalHandler,
}

impl JournalActor {
    /// The actor of a journal that has committed only the opening.
    pub fn new(
        (journal, opening): (Journal, Vec<Envelope>),
        clock: Clock,
        routes: ActorTable,
        sinks: Vec<Sink>,
        decline: RefusalHandler,
    ) -> Self {
        Self { journal, opening, clock, routes, sinks, decline }
    }

    fn commit(&mut self, event: Event, cause: Cause, from: Option<ActorId>) {
        match self.journal.commit(self.clock.now(), self.clock.wall(), event, cause.clone()) {
            Ok(envelope) => self.send_on(Arc::new(envelope)),
            Err((event, refusal)) => {
                let refused = Refused(event, refusal);
                match from {
                    Some(ActorId::Program(id)) => self.routes.programs[id].do_send(refused),
                    Some(ActorId::Dependency(id)) => self.routes.dependencies[id].do_send(refused),
                    Some(ActorId::Group(id)) => self.routes.groups[id].do_send(refused),
                    Some(ActorId::Shutdown) => self
                        .routes
                        .shutdown
                        .iter()
                        .for_each(|end| end.do_send(Refused(refused.0.clone(), refused.1.clone()))),
                    None => (self.decline)(&cause, &refused.1),
                }
            }
        }
    }

    fn send_on(&mut self, envelope: Arc<Envelope>) {
        self.journal.state().graph.recipients(&envelope.event, |actor| {
            let committed = Committed(envelope.clone());
            match actor {
                ActorId::Program(id) => self.routes.programs[id].do_send(committed),
                ActorId::Dependency(id) => self.routes.dependencies[id].do_send(committed),
                ActorId::Group(id) => self.routes.groups[id].do_send(committed),
                ActorId::Shutdown => self.routes.shutdown.iter().for_each(|end| end.do_send(committed.clone())),
            }
        });
        for sink in &mut self.sinks {
            sink(&envelope, self.journal.state());
        }
    }
}

impl ActorTable {
    /// Waits until every shell has handled what was sent to it so far.
    pub async fn flush(&self) {
        for program in self.programs.values() {
            let _ = program.send(Flush).await;
        }
        for dependency in self.dependencies.values() {
            let _ = dependency.send(Flush).await;
        }
        for group in self.groups.values() {
            let _ = group.send(Flush).await;
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
            for sink in &mut self.sinks {
                sink(&envelope, self.journal.state());
            }
        }
        let begin = StartMachine(first);
        self.routes.programs.values().for_each(|program| program.do_send(begin));
        self.routes.dependencies.values().for_each(|dependency| dependency.do_send(begin));
        self.routes.groups.values().for_each(|group| group.do_send(begin));
        self.routes.shutdown.iter().for_each(|end| end.do_send(begin));
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

impl Handler<Panicked> for JournalActor {
    type Result = ();
    fn handle(&mut self, Panicked { actor, message }: Panicked, _: &mut Context<Self>) {
        let event = SystemEvent::ActorPanicked { actor: format!("{actor:?}"), message };
        self.commit(Event::System(event), Cause::Kernel, None);
        let state = self.journal.state();
        let since = state.seq;
        match actor {
            ActorId::Program(id) => {
                self.routes.programs[id].do_send(Restore(Box::new(ProgramMachine::new(state, id)), since));
            }
            ActorId::Dependency(id) => {
                self.routes.dependencies[id].do_send(Restore(Box::new(DependencyMachine::new(state, id)), since));
            }
            ActorId::Group(id) => {
                self.routes.groups[id].do_send(Restore(Box::new(GroupMachine::new(state, id)), since));
            }
            ActorId::Shutdown => {
                let end = || Restore(Box::new(ShutdownMachine::new(state, ())), since);
                self.routes.shutdown.iter().for_each(|actor| actor.do_send(end()));
            }
        }
    }
}
