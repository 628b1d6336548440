//! The programs and dependencies of a configuration, with dense ids.
//!
//! A graph is built once from a checked configuration. It knows nothing of what runs; that is [`crate::state::State`].

mod policy;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

pub use self::policy::{Backoff, Leaves, Level, Limit, Mode, Policy, RESTART, START, STOP};
use crate::{
    event::{DependencyEvent, Event, ProgramEvent, SystemEvent},
    ids::{EdgeId, GroupId, ProgramId, Table},
    time::Millis,
};

/// Programs that move together from level to level.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its name.
    pub name: Arc<str>,
    /// The level at which it comes up.
    pub home: Level,
    /// The level it goes to when it fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Level>,
    /// Its programs, in the order of the configuration.
    #[serde(default)]
    pub members: Vec<ProgramId>,
    /// Those of them that hold back what comes after them.
    #[serde(default)]
    pub holders: Vec<ProgramId>,
    /// Whether one of them names the level of what is run for a restart.
    #[serde(default)]
    pub has_restart: bool,
}

impl Group {
    /// A group without programs.
    pub fn new(name: &str, home: &str, fallback: Option<&str>) -> Self {
        Self {
            name: name.into(),
            home: home.into(),
            fallback: fallback.map(Into::into),
            members: Vec::new(),
            holders: Vec::new(),
            has_restart: false,
        }
    }
}

/// What a dependency waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Until {
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
    /// The groups.
    #[serde(default)]
    pub groups: Table<GroupId, Group>,
    /// The programs of its group that each program builds on without a dependency: what they have done is undone only
    /// when it is down.
    #[serde(default)]
    builds_on: Table<ProgramId, Vec<ProgramId>>,
    /// The same the other way round.
    #[serde(default)]
    built_on: Table<ProgramId, Vec<ProgramId>>,
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
        self.edges_of.push(Vec::new());
        self.edges_on.push(Vec::new());
        self.built_on.push(Vec::new());
        let members = policy.group.map_or(&[][..], |group| &self.groups[group].members);
        let standing =
            |earlier: &&ProgramId| self.programs[**earlier].may_stand() && self.programs[**earlier].meets(&policy);
        let builds_on: Vec<ProgramId> = members.iter().filter(standing).copied().collect();
        let (group, holds_back, has_restart) = (policy.group, policy.mode.holds_back(), policy.names(RESTART));
        let id = self.programs.push(policy);
        for earlier in &builds_on {
            self.built_on[*earlier].push(id);
        }
        self.builds_on.push(builds_on);
        if let Some(group) = group {
            let group = &mut self.groups[group];
            group.members.push(id);
            group.holders.extend(holds_back.then_some(id));
            group.has_restart |= has_restart;
        }
        id
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

    /// Everybody who goes down before a program does if both are to go down: its dependents, and what builds on it.
    pub fn dependents(&self, on: ProgramId) -> BTreeSet<ProgramId> {
        let dependents = self.edges_on(on).iter().map(|edge| self.edges[*edge].of);
        dependents.chain(self.built_on[on].iter().copied()).collect()
    }

    /// Whether a group can be told this level: one of its programs names it, or it is one that every group has.
    pub fn has_level(&self, group: GroupId, level: &str) -> bool {
        let group = &self.groups[group];
        let everywhere = [STOP, &group.home].contains(&level);
        let open = || group.members.iter().any(|member| self.programs[*member].levels.is_empty());
        let named = || group.members.iter().any(|member| self.programs[*member].names(level));
        level != RESTART && (everywhere || named() || level == START && open())
    }

    /// The levels that a group can be told, in the order of their names.
    pub fn levels(&self, group: GroupId) -> Vec<Level> {
        let members = self.groups[group].members.iter().flat_map(|member| self.programs[*member].levels.iter());
        let fixed = [STOP.into(), START.into(), self.groups[group].home.clone()];
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
                waiting.extend(self.edges_on(program).iter().map(|edge| (self.edges[*edge].of, false)));
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
            Event::Dependency(edge, _) => Some(self.edges[*edge].of),
            Event::Group(..) | Event::System(_) => None,
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
                let moves = matches!(event, ProgramEvent::LevelEntered { .. } | ProgramEvent::LevelLeft { .. });
                if moves || event.makes_running().is_some() {
                    let needed = self.edges_of(*program).iter().map(|edge| self.edges[*edge].on);
                    let needed: BTreeSet<_> = needed.chain(self.builds_on[*program].iter().copied()).collect();
                    for on in needed {
                        tell(ActorId::Program(on));
                    }
                }
                if event.makes_running().is_some() {
                    tell(ActorId::Shutdown);
                }
                if let Some(group) = self.programs[*program].group {
                    tell(ActorId::Group(group));
                }
            }
            Event::Group(group, _) => tell(ActorId::Group(*group)),
            Event::Dependency(edge, event) => {
                let of = self.edges[*edge].of;
                tell(ActorId::Program(of));
                tell(ActorId::Dependency(*edge));
                if matches!(event, DependencyEvent::RestartDue { .. }) {
                    for edge in self.edges_on(of) {
                        tell(ActorId::Dependency(*edge));
                    }
                    if let Some(group) = self.programs[of].group {
                        tell(ActorId::Group(group));
                    }
                }
            }
            Event::System(SystemEvent::ShutdownBegun) => {
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
