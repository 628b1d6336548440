//! The programs and dependencies of a configuration, with dense ids.
//!
//! A graph is built once from a checked configuration. It knows nothing of what runs; that is [`crate::state::State`].

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    event::{DependencyEvent, Event, SystemEvent},
    ids::{EdgeId, ProgramId, Table},
    time::Millis,
};

/// What to do when a program ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Start it again, whatever its exit status.
    #[default]
    Respawn,
    /// Leave it, until an operator or a propagated restart wants it again.
    Once,
}

/// How the starts of a program that keeps ending are spaced.
///
/// The first restart is at once. After that two starts are at least `initial`, then twice that, and so on up to `max`
/// apart. An instance that stayed up for `reset` begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename = "backoff", deny_unknown_fields, default)]
pub struct Backoff {
    /// The space between the second and the third start.
    pub initial: Millis,
    /// The greatest space.
    pub max: Millis,
    /// How long an instance must stay up for the spacing to begin anew.
    pub reset: Millis,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Millis(100), max: Millis(60_000), reset: Millis(60_000) }
    }
}

/// When a program that keeps ending is given up: after so many starts within such a time. What somebody has asked for, or
/// what follows another program, is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename = "limit", deny_unknown_fields)]
pub struct Limit {
    /// How many starts, at least 1 and at most [`Limit::MOST`].
    pub starts: u32,
    /// Within which time.
    pub within: Millis,
    /// After which time it is tried again by itself; never if this is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Millis>,
}

impl Limit {
    /// The most starts that are remembered.
    pub const MOST: u32 = 1000;
}

/// The part of a program's configuration that the rules look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Its name.
    pub name: Arc<str>,
    /// What to do when it ends.
    pub mode: Mode,
    /// Whether it is wanted from the start.
    pub enabled: bool,
    /// How long it may take to end before it is killed.
    pub killwait: Millis,
    /// How its starts are spaced.
    pub backoff: Backoff,
    /// When it is given up, if ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    /// Whether everything is to end when it ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub essential: bool,
    /// Whether the configuration no longer has it: it is there only until it has stopped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retired: bool,
}

/// What a dependency waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Until {
    /// That `on` is up.
    #[default]
    Started,
    /// That `on` has run to its end by itself, with exit code 0.
    Completed,
}

/// A dependency: `of` needs `on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// The program that depends.
    pub of: ProgramId,
    /// The program it depends on.
    pub on: ProgramId,
    /// What is waited for.
    #[serde(default)]
    pub until: Until,
    /// How long that must have been so, in one instance.
    pub delay: Millis,
    /// Whether `of` is stopped and started again when `on` goes down.
    pub propagate: bool,
}

/// Programs and dependencies, in the order of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Graph {
    /// The programs.
    pub programs: Table<ProgramId, Policy>,
    /// The dependencies.
    pub edges: Table<EdgeId, Dependency>,
    /// The dependencies that each program has.
    edges_of: Table<ProgramId, Vec<EdgeId>>,
    /// The dependencies on each program.
    edges_on: Table<ProgramId, Vec<EdgeId>>,
    /// How long a shutdown may take before what is left is killed.
    pub killwait: Millis,
}

/// A receiver of committed events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ActorId {
    /// The rules of a program.
    Program(ProgramId),
    /// The rules of a dependency.
    Dependency(EdgeId),
    /// The rules of the end.
    Shutdown,
}

impl Graph {
    /// A graph without programs.
    pub fn new(killwait: Millis) -> Self {
        Self { killwait, ..Self::default() }
    }

    /// Adds a program.
    pub fn add_program(&mut self, policy: Policy) -> ProgramId {
        self.edges_of.push(Vec::new());
        self.edges_on.push(Vec::new());
        self.programs.push(policy)
    }

    /// Adds a dependency between two programs of this graph.
    pub fn add_dependency(&mut self, dependency: Dependency) -> EdgeId {
        let id = self.edges.push(dependency);
        self.edges_of[dependency.of].push(id);
        self.edges_on[dependency.on].push(id);
        id
    }

    /// The dependencies that a program has.
    pub fn edges_of(&self, of: ProgramId) -> &[EdgeId] {
        &self.edges_of[of]
    }

    /// The dependencies on a program.
    pub fn edges_on(&self, on: ProgramId) -> &[EdgeId] {
        &self.edges_on[on]
    }

    /// All programs by name.
    pub fn names(&self) -> BTreeMap<Arc<str>, ProgramId> {
        self.programs.iter().map(|(id, policy)| (policy.name.clone(), id)).collect()
    }

    /// The program whose state an event changes, if it changes one.
    pub fn subject(&self, event: &Event) -> Option<ProgramId> {
        match event {
            Event::Program(program, _) => Some(*program),
            Event::Dependency(edge, _) => Some(self.edges[*edge].of),
            Event::System(_) => None,
        }
    }

    /// Calls `tell` for everyone whose rules depend on the event, in a fixed order, each at most once.
    ///
    /// The cost is that of the degree of the program, never that of the number of programs; but for the few events of
    /// the whole system.
    pub fn interested(&self, event: &Event, mut tell: impl FnMut(ActorId)) {
        match event {
            Event::Program(program, event) => {
                tell(ActorId::Program(*program));
                for edge in self.edges_on(*program) {
                    tell(ActorId::Dependency(*edge));
                }
                if event.makes_running().is_some() {
                    for edge in self.edges_of(*program) {
                        tell(ActorId::Program(self.edges[*edge].on));
                    }
                    tell(ActorId::Shutdown);
                }
            }
            Event::Dependency(edge, event) => {
                let of = self.edges[*edge].of;
                tell(ActorId::Program(of));
                tell(ActorId::Dependency(*edge));
                if matches!(event, DependencyEvent::RestartDue { .. }) {
                    for edge in self.edges_on(of) {
                        tell(ActorId::Dependency(*edge));
                    }
                }
            }
            Event::System(SystemEvent::ShutdownBegun) => {
                for program in self.programs.ids() {
                    tell(ActorId::Program(program));
                }
                tell(ActorId::Shutdown);
            }
            // Committed before there is anybody to hear it.
            Event::System(
                SystemEvent::EpochOpened { .. }
                | SystemEvent::HandoverBegun { .. }
                | SystemEvent::ShutdownCompleted { .. }
                | SystemEvent::JournalDegraded { .. }
                | SystemEvent::JournalRestored { .. }
                | SystemEvent::JournalDamaged { .. }
                | SystemEvent::CommandRefused { .. }
                | SystemEvent::ActorPanicked { .. },
            ) => {}
        }
    }
}
