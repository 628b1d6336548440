//! One type for all machines, which the daemon, the simulator and `gaggled simulate` run.

use crate::{
    base::{ids::ActorId, time::Instant},
    graph::Graph,
    machine::{
        Input, Machine, Outputs, dependency::DependencyMachine, external::ExternalMachine, group::GroupMachine,
        program::ProgramMachine, shutdown::ShutdownMachine,
    },
    state::State,
};

/// The rules of one actor of any kind.
#[derive(Clone, Debug)]
pub enum AnyMachine {
    /// Of a program.
    Program(Box<ProgramMachine>),
    /// Of a program of another node.
    External(Box<ExternalMachine>),
    /// Of a dependency.
    Dependency(Box<DependencyMachine>),
    /// Of a group.
    Group(Box<GroupMachine>),
    /// Of the shutdown.
    Shutdown(ShutdownMachine),
}

impl AnyMachine {
    /// Builds the rules of an actor from the folded state.
    pub fn new(state: &State, actor: ActorId) -> Self {
        match actor {
            ActorId::Program(id) => match ExternalMachine::of(state, id) {
                Some(external) => Self::External(Box::new(external)),
                None => Self::Program(Box::new(ProgramMachine::new(state, id))),
            },
            ActorId::Dependency(id) => Self::Dependency(Box::new(DependencyMachine::new(state, id))),
            ActorId::Group(id) => Self::Group(Box::new(GroupMachine::new(state, id))),
            ActorId::Shutdown => Self::Shutdown(ShutdownMachine::new(state, ())),
        }
    }

    /// Processes an input, and adds the outputs that follow from it.
    pub fn step(&mut self, now: Instant, input: &Input<'_>, out: &mut Outputs) {
        match self {
            Self::Program(rules) => rules.step(now, input, out),
            Self::External(rules) => rules.step(now, input, out),
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
