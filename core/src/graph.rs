//! The programs and dependencies of a configuration, with dense ids.
//!
//! A graph is built once from a checked configuration. It knows nothing of what runs; that is [`crate::state::State`].

mod policy;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

pub use self::policy::{Backoff, Leaves, Level, Mode, Policy, RESTART, START, STOP, StartLimit};
use crate::{
    event::{DependencyEvent, Event, ProgramEvent, SystemEvent},
    ids::{DependencyId, GroupId, IdVec, ProgramId},
    time::Millis,
};

/// Programs that move together from level to level.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its name.
    pub name: Arc<str>,
    /// The level at which it comes up.
    pub default_level: Level,
    /// The level it goes to when it fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Level>,
    /// Its programs, in the order of the configuration.
    #[serde(default)]
    pub members: Vec<ProgramId>,
    /// Those of them that hold back what comes after them.
    #[serde(default)]
    pub gates: Vec<ProgramId>,
    /// Whether one of them names the level of what is run for a restart.
    #[serde(default)]
    pub has_restart: bool,
}

impl Group {
    /// A group without programs.
    pub fn new(name: &str, home: &str, fallback: Option<&str>) -> Self {
        Self {
            name: name.into(),
            default_level: home.into(),
            fallback: fallback.map(Into::into),
            members: Vec::new(),
            gates: Vec::new(),
            has_restart: false,
        }
    }
}

/// What a dependency waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// That `on` is up.
    #[default]
    Started,
    /// That `on` is ready.
    Ready,
    /// That `on` has run to its end by itself, with exit code 0.
    Completed,
}

/// A dependency: `of` needs `on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// The program that depends.
    pub dependent: ProgramId,
    /// The program it depends on.
    pub dependency: ProgramId,
    /// What is waited for.
    #[serde(default)]
    pub condition: Condition,
    /// How long that must have been so, in one instance.
    pub delay: Millis,
    /// Whether `of` is stopped and started again when `on` goes down.
    pub propagate: bool,
}

/// Programs and dependencies, in the order of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Graph {
    /// The programs.
    pub programs: IdVec<ProgramId, Policy>,
    /// The dependencies.
    pub dependencies: IdVec<DependencyId, Dependency>,
    /// The dependencies that each program has.
    dependencies_of: IdVec<ProgramId, Vec<DependencyId>>,
    /// The dependencies on each program.
    dependencies_on: IdVec<ProgramId, Vec<DependencyId>>,
    /// The groups.
    #[serde(default)]
    pub groups: IdVec<GroupId, Group>,
    /// The programs of its group that each program builds on without a dependency: what they have done is undone only
    /// when it is down.
    #[serde(default)]
    after_gates: IdVec<ProgramId, Vec<ProgramId>>,
    /// The same the other way round.
    #[serde(default)]
    gated: IdVec<ProgramId, Vec<ProgramId>>,
    /// How long a shutdown may take before what is left is killed.
    pub killwait: Millis,
}

/// A receiver of committed events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ActorId {
    /// The rules of a program.
    Program(ProgramId),
    /// The rules of a dependency.
    Dependency(DependencyId),
    /// The rules of a group.
    Group(GroupId),
    /// The rules of the end.
    Shutdown,
}

impl Graph {
    /// A graph without programs.
    pub fn new(killwait: Millis) -> Self {
        Self { killwait, ..Self::default() }
    }

    /// Adds a group, before its programs.
    pub fn add_group(&mut self, group: Group) -> GroupId {
        self.groups.push(group)
    }

    /// Adds a program.
    pub fn add_program(&mut self, policy: Policy) -> ProgramId {
        self.dependencies_of.push(Vec::new());
        self.dependencies_on.push(Vec::new());
        self.gated.push(Vec::new());
        let members = policy.group.map_or(&[][..], |group| &self.groups[group].members);
        let standing = |earlier: &&ProgramId| {
            self.programs[**earlier].may_remain() && self.programs[**earlier].shares_level(&policy)
        };
        let after_gates: Vec<ProgramId> = members.iter().filter(standing).copied().collect();
        let (group, holds_back, has_restart) = (policy.group, policy.mode.is_gate(), policy.names(RESTART));
        let id = self.programs.push(policy);
        for earlier in &after_gates {
            self.gated[*earlier].push(id);
        }
        self.after_gates.push(after_gates);
        if let Some(group) = group {
            let group = &mut self.groups[group];
            group.members.push(id);
            group.gates.extend(holds_back.then_some(id));
            group.has_restart |= has_restart;
        }
        id
    }

    /// Adds a dependency between two programs of this graph.
    pub fn add_dependency(&mut self, dependency: Dependency) -> DependencyId {
        let id = self.dependencies.push(dependency);
        self.dependencies_of[dependency.dependent].push(id);
        self.dependencies_on[dependency.dependency].push(id);
        id
    }

    /// The dependencies that a program has.
    pub fn dependencies_of(&self, of: ProgramId) -> &[DependencyId] {
        &self.dependencies_of[of]
    }

    /// The dependencies on a program.
    pub fn dependencies_on(&self, on: ProgramId) -> &[DependencyId] {
        &self.dependencies_on[on]
    }

    /// Everybody who goes down before a program does if both are to go down: its dependents, and what builds on it.
    pub fn dependents(&self, on: ProgramId) -> BTreeSet<ProgramId> {
        let dependents = self.dependencies_on(on).iter().map(|dependency| self.dependencies[*dependency].dependent);
        dependents.chain(self.gated[on].iter().copied()).collect()
    }

    /// Whether a group can be told this level: one of its programs names it, or it is one that every group has.
    pub fn has_level(&self, group: GroupId, level: &str) -> bool {
        let group = &self.groups[group];
        let everywhere = [STOP, &group.default_level].contains(&level);
        let open = || group.members.iter().any(|member| self.programs[*member].levels.is_empty());
        let named = || group.members.iter().any(|member| self.programs[*member].names(level));
        level != RESTART && (everywhere || named() || level == START && open())
    }

    /// The levels that a group can be told, in the order of their names.
    pub fn levels(&self, group: GroupId) -> Vec<Level> {
        let members = self.groups[group].members.iter().flat_map(|member| self.programs[*member].levels.iter());
        let fixed = [STOP.into(), START.into(), self.groups[group].default_level.clone()];
        let all: BTreeSet<Level> = members.cloned().chain(fixed).collect();
        all.into_iter().filter(|level| self.has_level(group, level)).collect()
    }

    /// The programs of a group in the order in which they are told to leave: dependents first, else the last first.
    pub fn leave_order(&self, group: GroupId) -> Vec<ProgramId> {
        let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
        for member in self.groups[group].members.iter().rev() {
            self.push_after_dependents(group, *member, &mut seen, &mut order);
        }
        order
    }

    fn push_after_dependents(
        &self,
        group: GroupId,
        program: ProgramId,
        seen: &mut BTreeSet<ProgramId>,
        order: &mut Vec<ProgramId>,
    ) {
        let mut waiting = vec![(program, false)];
        while let Some((program, ready)) = waiting.pop() {
            if ready {
                order.push(program);
            } else if self.programs[program].group == Some(group) && seen.insert(program) {
                waiting.push((program, true));
                waiting.extend(
                    self.dependencies_on(program)
                        .iter()
                        .map(|dependency| (self.dependencies[*dependency].dependent, false)),
                );
            }
        }
    }

    /// The group of a name.
    pub fn group(&self, name: &str) -> Option<GroupId> {
        self.groups.iter().find(|(_, group)| &*group.name == name).map(|(id, _)| id)
    }

    /// All programs by name.
    pub fn names(&self) -> BTreeMap<Arc<str>, ProgramId> {
        self.programs.iter().map(|(id, policy)| (policy.name.clone(), id)).collect()
    }

    /// The program whose state an event changes, if it changes one.
    pub fn subject(&self, event: &Event) -> Option<ProgramId> {
        match event {
            Event::Program(program, _) => Some(*program),
            Event::Dependency(dependency, _) => Some(self.dependencies[*dependency].dependent),
            Event::Group(..) | Event::System(_) => None,
        }
    }

    /// Calls `tell` for everyone whose rules depend on the event, in a fixed order, each at most once.
    ///
    /// The cost is that of the degree of the program, never that of the number of programs; but for the few events of
    /// the whole system.
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
            // Committed before there is anybody to hear it.
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
