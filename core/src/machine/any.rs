//! One type for all machines, which the daemon, the simulator and `gaggled simulate` run.

use crate::{
    base::{ids::ActorId, time::Instant},
    graph::Graph,
    machine::{
        Input, Machine, Outputs, dependency::DependencyMachine, group::GroupMachine, program::ProgramMachine,
        shutdown::ShutdownMachine,
    },
    state::State,
};

/// The rules of one actor, whichever it is.
#[derive(Clone, Debug)]
pub enum AnyMachine {
    /// Of a program.
    Program(Box<ProgramMachine>),
    /// Of a dependency.
    Dependency(Box<DependencyMachine>),
    /// Of a group.
    Group(Box<GroupMachine>),
    /// Of the end.
    Shutdown(ShutdownMachine),
}

impl AnyMachine {
    /// The rules of an actor as the fold has them.
    pub fn new(state: &State, actor: ActorId) -> Self {
        match actor {
            ActorId::Program(id) => Self::Program(Box::new(ProgramMachine::new(state, id))),
            ActorId::Dependency(id) => Self::Dependency(Box::new(DependencyMachine::new(state, id))),
            ActorId::Group(id) => Self::Group(Box::new(GroupMachine::new(state, id))),
            ActorId::Shutdown => Self::Shutdown(ShutdownMachine::new(state, ())),
        }
    }

    /// Takes an input and says what follows from it.
    pub fn step(&mut self, now: Instant, input: &Input<'_>, out: &mut Outputs) {
        match self {
            Self::Program(rules) => rules.step(now, input, out),
            Self::Dependency(rules) => rules.step(now, input, out),
            Self::Group(rules) => rules.step(now, input, out),
            Self::Shutdown(rules) => rules.step(now, input, out),
        }
    }
}

/// All machines, in the order in which they start.
pub fn all_actors(graph: &Graph) -> Vec<ActorId> {
    let programs = graph.programs.ids().map(ActorId::Program);
    let dependencies = graph.dependencies.ids().map(ActorId::Dependency);
    let groups = graph.groups.ids().map(ActorId::Group);
    programs.chain(dependencies).chain(groups).chain([ActorId::Shutdown]).collect()
}
