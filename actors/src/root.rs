//! Builds the actors of a graph and connects them.

use actix::{Actor, Addr, AsyncContext, Context, Message, Recipient};
use gaggled_core::{
    dependency::Dependency,
    event::Envelope,
    graph::ActorId,
    group::Group,
    ids::{ProgramId, Table},
    journal::Journal,
    machine::Machine,
    program::Program,
    shutdown::Shutdown,
};

use crate::{
    clock::Clock,
    journal::{Decline, JournalActor, Open, Routes, Sink},
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

/// All actors of a life of the daemon.
#[derive(Clone, Debug)]
pub struct Actors {
    /// The journal.
    pub journal: Addr<JournalActor>,
    /// Everybody else.
    pub routes: Routes,
}

/// Starts all actors; nothing happens before [`open`].
pub fn start(
    (journal, opening): (Journal, Vec<Envelope>),
    clock: Clock,
    host: &HostAddress,
    sinks: Vec<Sink>,
    decline: Decline,
) -> Actors {
    let mut made = Routes::default();
    let actor = JournalActor::create(|ctx: &mut Context<JournalActor>| {
        let wiring = Wiring { clock, journal: ctx.address(), host: host.perform.clone() };
        let routes = shells(&journal, &wiring);
        made = routes.clone();
        host.connect.do_send(Connect(routes.programs.values().map(|program| program.clone().recipient()).collect()));
        JournalActor::new((journal, opening), clock, routes, sinks, decline)
    });
    Actors { journal: actor, routes: made }
}

/// Lets everything begin: what is wanted comes up, and what was under way goes on.
pub fn open(journal: &Addr<JournalActor>) {
    journal.do_send(Open);
}

fn shells(journal: &Journal, wiring: &Wiring) -> Routes {
    let state = journal.state();
    let program = |id| Shell::new(ActorId::Program(id), Program::new(state, id), wiring.clone()).start();
    let dependency = |id| Shell::new(ActorId::Dependency(id), Dependency::new(state, id), wiring.clone()).start();
    let group = |id| Shell::new(ActorId::Group(id), Group::new(state, id), wiring.clone()).start();
    Routes {
        programs: state.graph.programs.ids().map(program).collect(),
        dependencies: state.graph.edges.ids().map(dependency).collect(),
        groups: state.graph.groups.ids().map(group).collect(),
        shutdown: Some(Shell::new(ActorId::Shutdown, Shutdown::new(state, ()), wiring.clone()).start()),
    }
}
