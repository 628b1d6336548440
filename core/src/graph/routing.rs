//! Which machines receive an event.

use std::collections::BTreeSet;

use super::Graph;
use crate::{
    base::ids::{ActorId, ProgramId},
    event::{DependencyEvent, Event, ProgramEvent, SystemEvent},
};

impl Graph {
    /// The program whose state an event changes, if it changes one.
    pub fn subject(&self, event: &Event) -> Option<ProgramId> {
        match event {
            Event::Program(program, _) | Event::Remote(program, _) => Some(*program),
            Event::Dependency(dependency, _) => Some(self.dependencies[*dependency].dependent),
            Event::Group(..) | Event::System(_) => None,
        }
    }

    /// Calls `tell` for each machine that depends on the event, in a fixed order, each at most once.
    ///
    /// The cost grows with the degree of the program in the graph, not with the number of programs, except for the few
    /// events of the whole system.
    pub fn recipients(&self, event: &Event, mut tell: impl FnMut(ActorId)) {
        match event {
            Event::Program(program, event) => {
                tell(ActorId::Program(*program));
                for dependency in self.dependencies_on(*program) {
                    tell(ActorId::Dependency(*dependency));
                }
                let moves =
                    matches!(event, ProgramEvent::LevelStartRequested { .. } | ProgramEvent::LevelStopRequested { .. });
                if moves || event.sets_running().is_some() {
                    let needed = self
                        .dependencies_of(*program)
                        .iter()
                        .map(|dependency| self.dependencies[*dependency].dependency);
                    let needed: BTreeSet<_> = needed.chain(self.after_gates[*program].iter().copied()).collect();
                    for on in needed {
                        tell(ActorId::Program(on));
                    }
                }
                if event.sets_running().is_some() {
                    tell(ActorId::Shutdown);
                }
                if let Some(group) = self.programs[*program].group {
                    tell(ActorId::Group(group));
                }
            }
            Event::Remote(program, _) => {
                tell(ActorId::Program(*program));
                for dependency in self.dependencies_on(*program) {
                    tell(ActorId::Dependency(*dependency));
                }
            }
            Event::Group(group, _) => tell(ActorId::Group(*group)),
            Event::Dependency(dependency, event) => {
                let of = self.dependencies[*dependency].dependent;
                tell(ActorId::Program(of));
                tell(ActorId::Dependency(*dependency));
                if matches!(event, DependencyEvent::RestartTriggered { .. }) {
                    for dependency in self.dependencies_on(of) {
                        tell(ActorId::Dependency(*dependency));
                    }
                    if let Some(group) = self.programs[of].group {
                        tell(ActorId::Group(group));
                    }
                }
            }
            Event::System(SystemEvent::ShutdownStarted) => {
                for program in self.programs.ids() {
                    tell(ActorId::Program(program));
                }
                for group in self.groups.ids() {
                    tell(ActorId::Group(group));
                }
                tell(ActorId::Shutdown);
            }
            // No machine depends on these.
            Event::System(
                SystemEvent::DaemonStarted { .. }
                | SystemEvent::HandoverStarted { .. }
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
