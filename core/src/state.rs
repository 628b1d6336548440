//! The state of everything, as a fold of the events and nothing else.
//!
//! [`State::apply`] is the only fold there is: the daemon, the tools that follow it, and the simulator call it. What a
//! program's state is changes only with an event that concerns that program, so a follower that looks at one program
//! needs only that program's events.

mod group;
mod program;
mod spacing;

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Serialize};

pub use self::{
    group::{GroupState, Standing},
    program::{Leaving, Outcome, Phase, Place, ProgramState},
};
use crate::{
    event::{DependencyEvent, Envelope, Event, Handover, SystemEvent},
    graph::{Dependency, Graph},
    host::ExitStatus,
    ids::{EdgeId, EpochId, GroupId, InstanceId, ProgramId, Seq, Table},
    time::Instant,
};

/// The state of one dependency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeState {
    /// The run of `on` that satisfies it.
    pub satisfied: Option<InstanceId>,
    /// The last fall of `on` that it answered with a restart.
    pub last_fall: Option<Seq>,
}
/// The state of everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The programs and dependencies this is the state of.
    pub graph: Arc<Graph>,
    /// The life of the daemon.
    pub epoch: EpochId,
    /// The last event that was applied.
    pub seq: Seq,
    /// When that was.
    pub at: Instant,
    /// The state of each program.
    pub programs: Table<ProgramId, ProgramState>,
    /// The state of each dependency.
    pub edges: Table<EdgeId, EdgeState>,
    /// The state of each group.
    #[serde(default)]
    pub groups: Table<GroupId, GroupState>,
    /// When the shutdown began.
    pub shutdown: Option<Instant>,
    /// Programs of which there is something to stop, or is about to be.
    pub running: BTreeSet<ProgramId>,
    /// How many programs outlived the shutdown, once it is complete.
    pub survivors: Option<u32>,
    /// How an essential program has ended, with which everything ends.
    pub verdict: Option<ExitStatus>,
    /// That this life of the daemon gives everything to the next, and the event that says so.
    pub handover: Option<(Handover, Seq)>,
}
impl State {
    /// The state before the first event of an epoch.
    pub fn new(graph: Arc<Graph>, epoch: EpochId) -> Self {
        let programs =
            graph.programs.iter().map(|(id, policy)| ProgramState::new(policy, graph.edges_of(id).len())).collect();
        let edges = graph.edges.values().map(|_| EdgeState::default()).collect();
        let groups = graph.groups.values().map(GroupState::new).collect();
        Self {
            graph,
            epoch,
            seq: Seq(0),
            at: Instant::default(),
            programs,
            edges,
            groups,
            shutdown: None,
            running: BTreeSet::new(),
            survivors: None,
            verdict: None,
            handover: None,
        }
    }

    /// Folds the next event.
    pub fn apply(&mut self, envelope: &Envelope) {
        self.seq = envelope.seq;
        self.at = envelope.at;
        match &envelope.event {
            Event::Program(id, event) => {
                let program = &mut self.programs[*id];
                if self.shutdown.is_none() && self.graph.programs[*id].essential && self.verdict.is_none() {
                    self.verdict = program.verdict(event);
                }
                program.apply(&self.graph.programs[*id], self.epoch, envelope.seq, envelope.at, event);
                if let Some(group) = self.graph.programs[*id].group {
                    self.groups[group].look_at(*id, program);
                }
                match event.makes_running() {
                    Some(true) => drop(self.running.insert(*id)),
                    Some(false) => drop(self.running.remove(id)),
                    None => {}
                }
            }
            Event::Dependency(id, event) => self.apply_dependency(*id, event, envelope),
            Event::Group(id, event) => self.groups[*id].apply(envelope.seq, event),
            Event::System(SystemEvent::ShutdownBegun) => self.shutdown = Some(envelope.at),
            Event::System(SystemEvent::ShutdownCompleted { survivors }) => self.survivors = Some(*survivors),
            Event::System(SystemEvent::HandoverBegun { to }) => self.handover = Some((*to, envelope.seq)),
            Event::System(
                SystemEvent::EpochOpened { .. }
                | SystemEvent::JournalDegraded { .. }
                | SystemEvent::JournalRestored { .. }
                | SystemEvent::JournalDamaged { .. }
                | SystemEvent::CommandRefused { .. }
                | SystemEvent::ActorPanicked { .. },
            ) => {}
        }
    }

    fn apply_dependency(&mut self, id: EdgeId, event: &DependencyEvent, envelope: &Envelope) {
        let edge = &mut self.edges[id];
        match event {
            DependencyEvent::Satisfied { instance } => edge.satisfied = Some(*instance),
            DependencyEvent::Broken => edge.satisfied = None,
            DependencyEvent::RestartDue { fall, .. } => edge.last_fall = Some(*fall),
        }
        self.programs[self.graph.edges[id].of].apply_dependency(envelope.seq, envelope.at, event);
    }

    /// A dependency with its state.
    pub fn edge(&self, id: EdgeId) -> (&Dependency, &EdgeState) {
        (&self.graph.edges[id], &self.edges[id])
    }

    /// When a dependency is, or will be, open; `None` while `on` cannot be counted on.
    pub fn opens_at(&self, id: EdgeId) -> Option<Instant> {
        let edge = &self.graph.edges[id];
        Some(self.programs[edge.on].counts_since(edge.until)? + edge.delay)
    }
}
