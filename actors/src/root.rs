//! Builds the actors of a graph and connects them.

use std::sync::Arc;

use actix::{Actor, Addr, AsyncContext, Context, Message, Recipient};
use gaggled_core::{
    dependency::Dependency,
    event::{Cause, Event, SystemEvent},
    graph::{ActorId, Graph},
    ids::{EpochId, ProgramId, Table},
    journal::Journal,
    machine::Machine,
    program::Program,
    shutdown::Shutdown,
};

use crate::{
    clock::Clock,
    journal::{Decline, JournalActor, Propose, Routes, Sink},
    shell::{Perform, Saw, Shell, Wiring},
};

/// To the host: where to tell what it sees of each program.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Connect(pub Table<ProgramId, Recipient<Saw>>);

/// A host, as the actors see it.
#[derive(Clone, Debug)]
pub struct HostAddress {
    /// Takes effects.
    pub perform: Recipient<Perform>,
    /// Is told the programs.
    pub connect: Recipient<Connect>,
}

/// Starts all actors of a graph; nothing happens before [`open`].
pub fn start(
    graph: Arc<Graph>,
    epoch: EpochId,
    clock: Clock,
    host: &HostAddress,
    sinks: Vec<Sink>,
    decline: Decline,
) -> Addr<JournalActor> {
    let journal = Journal::new(graph, epoch);
    JournalActor::create(|ctx: &mut Context<JournalActor>| {
        let wiring = Wiring { clock, journal: ctx.address(), host: host.perform.clone() };
        let routes = shells(&journal, &wiring);
        host.connect.do_send(Connect(routes.programs.values().map(|program| program.clone().recipient()).collect()));
        JournalActor::new(journal, clock, routes, sinks, decline)
    })
}

/// Opens the epoch: everything that is wanted begins to come up.
pub fn open(journal: &Addr<JournalActor>, version: &str, programs: usize) {
    let programs = u32::try_from(programs).unwrap_or(u32::MAX);
    let event = Event::System(SystemEvent::EpochOpened { version: version.to_owned(), programs });
    journal.do_send(Propose { from: None, event, cause: Cause::Boot });
}

fn shells(journal: &Journal, wiring: &Wiring) -> Routes {
    let state = journal.state();
    let program = |id| Shell::new(ActorId::Program(id), Program::new(state, id), wiring.clone()).start();
    let dependency = |id| Shell::new(ActorId::Dependency(id), Dependency::new(state, id), wiring.clone()).start();
    Routes {
        programs: state.graph.programs.ids().map(program).collect(),
        dependencies: state.graph.edges.ids().map(dependency).collect(),
        shutdown: Some(Shell::new(ActorId::Shutdown, Shutdown::new(state, ()), wiring.clone()).start()),
    }
}
