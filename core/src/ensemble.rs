//! The rules of a whole system together: whoever drives them, drives them in the same way.

use crate::{
    dependency::Dependency,
    graph::{ActorId, Graph},
    group::Group,
    machine::{Input, Machine, Outputs},
    program::Program,
    shutdown::Shutdown,
    state::State,
    time::Instant,
};

/// The rules of one actor, whichever it is.
#[derive(Clone, Debug)]
pub enum Rules {
    /// Of a program.
    Program(Box<Program>),
    /// Of a dependency.
    Dependency(Box<Dependency>),
    /// Of a group.
    Group(Box<Group>),
    /// Of the end.
    Shutdown(Shutdown),
}

impl Rules {
    /// The rules of an actor as the fold has them.
    pub fn new(state: &State, actor: ActorId) -> Self {
        match actor {
            ActorId::Program(id) => Self::Program(Box::new(Program::new(state, id))),
            ActorId::Dependency(id) => Self::Dependency(Box::new(Dependency::new(state, id))),
            ActorId::Group(id) => Self::Group(Box::new(Group::new(state, id))),
            ActorId::Shutdown => Self::Shutdown(Shutdown::new(state, ())),
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

/// Everybody, in the order in which they are told to begin.
pub fn everybody(graph: &Graph) -> Vec<ActorId> {
    let programs = graph.programs.ids().map(ActorId::Program);
    let edges = graph.edges.ids().map(ActorId::Dependency);
    let groups = graph.groups.ids().map(ActorId::Group);
    programs.chain(edges).chain(groups).chain([ActorId::Shutdown]).collect()
}
