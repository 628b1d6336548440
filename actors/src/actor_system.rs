//! Builds the actors of a graph and connects them.

use actix::{Actor, Addr, AsyncContext, Context, Message, Recipient};
use gaggled_core::{
    base::ids::{ActorId, IdVec, ProgramId},
    event::Envelope,
    journal::Journal,
    machine::{
        Machine, dependency::DependencyMachine, group::GroupMachine, program::ProgramMachine, shutdown::ShutdownMachine,
    },
};

use crate::{
    clock::Clock,
    journal::{ActorTable, JournalActor, OpenJournal, RefusalHandler, Sink},
    machine_actor::{ActorContext, Execute, HostReported, MachineActor},
};

/// To the host: where to tell what it sees of each program.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Connect(pub IdVec<ProgramId, Recipient<HostReported>>);

/// A host, as the actors see it.
#[derive(Clone, Debug)]
pub struct HostAddress {
    /// Takes effects.
    pub perform: Recipient<Execute>,
    /// Is told the programs.
    pub connect: Recipient<Connect>,
}

/// All actors of a life of the daemon.
#[derive(Clone, Debug)]
pub struct Actors {
    /// The journal.
    pub journal: Addr<JournalActor>,
    /// Everybody else.
    pub routes: ActorTable,
}

/// Starts all actors; nothing happens before [`open`].
pub fn start(
    (journal, opening): (Journal, Vec<Envelope>),
    clock: Clock,
    host: &HostAddress,
    sinks: Vec<Sink>,
    decline: RefusalHandler,
) -> Actors {
    let mut made = ActorTable::default();
    let actor = JournalActor::create(|ctx: &mut Context<JournalActor>| {
        let wiring = ActorContext { clock, journal: ctx.address(), host: host.perform.clone() };
        let routes = shells(&journal, &wiring);
        made = routes.clone();
        host.connect.do_send(Connect(routes.programs.values().map(|program| program.clone().recipient()).collect()));
        JournalActor::new((journal, opening), clock, routes, sinks, decline)
    });
    Actors { journal: actor, routes: made }
}

/// Lets everything begin: what is wanted comes up, and what was under way goes on.
pub fn open(journal: &Addr<JournalActor>) {
    journal.do_send(OpenJournal);
}

fn shells(journal: &Journal, wiring: &ActorContext) -> ActorTable {
    let state = journal.state();
    let program = |id| MachineActor::new(ActorId::Program(id), ProgramMachine::new(state, id), wiring.clone()).start();
    let dependency =
        |id| MachineActor::new(ActorId::Dependency(id), DependencyMachine::new(state, id), wiring.clone()).start();
    let group = |id| MachineActor::new(ActorId::Group(id), GroupMachine::new(state, id), wiring.clone()).start();
    ActorTable {
        programs: state.graph.programs.ids().map(program).collect(),
        dependencies: state.graph.dependencies.ids().map(dependency).collect(),
        groups: state.graph.groups.ids().map(group).collect(),
        shutdown: Some(MachineActor::new(ActorId::Shutdown, ShutdownMachine::new(state, ()), wiring.clone()).start()),
    }
}
