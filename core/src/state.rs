//! The state of everything, as a fold of the events and nothing else.
//!
//! [`State::apply`] is the only fold: the daemon, the tools that follow it, and the simulator call it. The state of a
//! program changes only with its own events and those of the dependencies that it has.

mod backoff;
mod group;
mod program;

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Serialize};

pub use self::{
    group::{GroupState, LevelSwitch, Tenancy},
    program::{Membership, PendingStop, Phase, ProcessInfo, ProgramState, Stop, StopMethod},
};
use crate::{
    base::{
        ids::{DependencyId, EpochId, GroupId, IdVec, InstanceId, ProgramId, Seq},
        time::Instant,
    },
    event::{DependencyEvent, Envelope, Event, Handover, SystemEvent},
    graph::{Dependency, Graph, Policy},
    process::ExitStatus,
};

/// The state of one dependency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DependencyState {
    /// The run that satisfies it.
    pub satisfied: Option<InstanceId>,
    /// The last `down_event` that it answered with a restart.
    pub last_down_event: Option<Seq>,
}

impl DependencyState {
    /// Folds an event of the dependency.
    pub fn apply(&mut self, event: &DependencyEvent) {
        match event {
            DependencyEvent::Satisfied { instance } => self.satisfied = Some(*instance),
            DependencyEvent::Broken => self.satisfied = None,
            DependencyEvent::RestartTriggered { down_event, .. } => self.last_down_event = Some(*down_event),
        }
    }
}

/// The state of everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The programs and dependencies this is the state of.
    pub graph: Arc<Graph>,
    /// The epoch.
    pub epoch: EpochId,
    /// The last event that was applied.
    pub seq: Seq,
    /// When that event was committed.
    pub at: Instant,
    /// The state of each program.
    pub programs: IdVec<ProgramId, ProgramState>,
    /// The state of each dependency.
    pub dependencies: IdVec<DependencyId, DependencyState>,
    /// The state of each group.
    #[serde(default)]
    pub groups: IdVec<GroupId, GroupState>,
    /// When the shutdown began.
    pub shutdown: Option<Instant>,
    /// Programs with something to stop: a process, a start under way, or effects to undo.
    pub running: BTreeSet<ProgramId>,
    /// How many programs outlived the shutdown, once it is complete.
    pub unkillable: Option<u32>,
    /// The exit status of the essential program whose end shuts down everything.
    pub essential_exit: Option<ExitStatus>,
    /// The handover to the next daemon, once it has begun, and the event that records it.
    pub handover: Option<(Handover, Seq)>,
}
impl State {
    /// Whether programs run that the configuration has no longer, or that are of a group which this node does not hold: they may
    /// have been of another one.
    pub fn has_leftovers(&self) -> bool {
        let is_away = |group: GroupId| {
            matches!(self.groups[group].tenancy, Some(Tenancy::Away { .. } | Tenancy::Claiming { .. }))
        };
        let is_left = |policy: &Policy| policy.unconfigured || policy.group.is_some_and(is_away);
        self.running.iter().any(|id| is_left(&self.graph.programs[*id]))
    }

    /// Whether something of a group runs that runs on one node at a time. What the configuration has no longer may have been of it.
    pub fn runs_shared(&self, id: GroupId) -> bool {
        let is_running = |member: &ProgramId| self.programs[*member].is_running();
        self.graph.groups[id].members.iter().any(is_running) || self.has_leftovers()
    }

    /// The state before the first event of an epoch.
    pub fn new(graph: Arc<Graph>, epoch: EpochId) -> Self {
        let programs = graph
            .programs
            .iter()
            .map(|(id, policy)| ProgramState::new(policy, graph.dependencies_of(id).len()))
            .collect();
        let dependencies = graph.dependencies.values().map(|_| DependencyState::default()).collect();
        let groups = graph.groups.values().map(GroupState::new).collect();
        Self {
            graph,
            epoch,
            seq: Seq(0),
            at: Instant::default(),
            programs,
            dependencies,
            groups,
            shutdown: None,
            running: BTreeSet::new(),
            unkillable: None,
            essential_exit: None,
            handover: None,
        }
    }

    /// Folds the next event.
    pub fn apply(&mut self, envelope: &Envelope) {
        self.seq = envelope.seq;
        self.at = envelope.monotonic;
        match &envelope.event {
            Event::Program(id, event) => {
                let program = &mut self.programs[*id];
                if self.shutdown.is_none() && self.graph.programs[*id].essential && self.essential_exit.is_none() {
                    self.essential_exit = program.essential_exit(event);
                }
                program.apply(&self.graph.programs[*id], self.epoch, envelope.seq, envelope.monotonic, event);
                if let Some(group) = self.graph.programs[*id].group {
                    self.groups[group].update_member(*id, program);
                }
                match event.sets_running() {
                    Some(true) => drop(self.running.insert(*id)),
                    Some(false) => drop(self.running.remove(id)),
                    None => {}
                }
            }
            Event::Remote(id, event) => self.programs[*id].apply_remote(envelope.seq, envelope.monotonic, event),
            Event::Dependency(id, event) => self.apply_dependency(*id, event, envelope),
            Event::Group(id, event) => self.groups[*id].apply(envelope.seq, event),
            Event::System(SystemEvent::ShutdownStarted) => self.shutdown = Some(envelope.monotonic),
            Event::System(SystemEvent::ShutdownCompleted { unkillable }) => {
                self.unkillable = Some(*unkillable);
            }
            Event::System(SystemEvent::HandoverStarted { kind }) => self.handover = Some((*kind, envelope.seq)),
            Event::System(
                SystemEvent::DaemonStarted { .. }
                | SystemEvent::JournalDegraded { .. }
                | SystemEvent::JournalRestored { .. }
                | SystemEvent::JournalDamaged { .. }
                | SystemEvent::CommandRefused { .. }
                | SystemEvent::ActorPanicked { .. },
            ) => {}
        }
    }

    fn apply_dependency(&mut self, id: DependencyId, event: &DependencyEvent, envelope: &Envelope) {
        self.dependencies[id].apply(event);
        self.programs[self.graph.dependencies[id].dependent].apply_dependency(envelope.seq, envelope.monotonic, event);
    }

    /// A dependency with its state.
    pub fn dependency(&self, id: DependencyId) -> (&Dependency, &DependencyState) {
        (&self.graph.dependencies[id], &self.dependencies[id])
    }

    /// When a dependency is, or will be, satisfied; `None` while its program does not meet the condition.
    pub fn satisfied_at(&self, id: DependencyId) -> Option<Instant> {
        let dependency = &self.graph.dependencies[id];
        self.programs[dependency.dependency].satisfies_at(dependency)
    }
}
