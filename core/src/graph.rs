//! The programs and dependencies of a configuration, with dense ids.
//!
//! A graph is built once from a checked configuration. It knows nothing of what runs; that is [`crate::state::State`].

mod health_policy;
mod levels;
mod policy;
mod routing;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

pub use self::health_policy::{HealthCheck, HealthPolicy, Readiness};
pub use self::policy::{Backoff, Leaves, Mode, Policy, RESTART, START, STOP, StartLimit};
use crate::base::{
    ids::{DependencyId, GroupId, IdVec, Level, ProgramId},
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
    /// Those of them that hold back the programs after them: mode `Wait` or `Test`.
    #[serde(default)]
    pub gates: Vec<ProgramId>,
    /// Whether one of its programs names the level `restart`.
    #[serde(default)]
    pub has_restart: bool,
    /// How it is shared between nodes, if it runs on one at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenancy: Option<TenancyPolicy>,
}

/// How a group is shared between nodes that runs on one of them at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenancyPolicy {
    /// This node.
    pub node: Arc<str>,
    /// The nodes that may run it, in the order of preference.
    pub candidates: Vec<Arc<str>>,
    /// How long a node waits, after it has seen that the session of the holder is gone, until nothing of the group runs there:
    /// the longest permit, and the longest stop.
    pub takeover_after: Millis,
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
            tenancy: None,
        }
    }
}

/// What a dependency waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// That the dependency is up.
    #[default]
    Started,
    /// That the dependency is ready.
    Ready,
    /// That the dependency has run to its end by itself, with success.
    Completed,
}

/// A dependency of one program on another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// The program that depends.
    pub dependent: ProgramId,
    /// The program it depends on.
    pub dependency: ProgramId,
    /// What is waited for.
    #[serde(default)]
    pub condition: Condition,
    /// How long the condition must have been met, in one instance.
    pub delay: Millis,
    /// Whether the dependent is stopped and started again when the dependency goes down.
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
    /// For each program, those whose effects it relies on, which are undone only when it is down: earlier ones of its group,
    /// and the cluster gateway, which reports how it ends.
    #[serde(default)]
    after_gates: IdVec<ProgramId, Vec<ProgramId>>,
    /// The inverse: the programs that rely on its effects.
    #[serde(default)]
    gated: IdVec<ProgramId, Vec<ProgramId>>,
    /// How long a shutdown may take before the remaining processes are killed.
    pub killwait: Millis,
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

    /// How long it takes at most to stop a group: its programs stop dependents first, and then those of its level `stop` run one
    /// after the other, each of which has as long as it has to end.
    pub fn longest_stop(&self, group: GroupId) -> Millis {
        let members = &self.groups[group].members;
        let is_clean_up = |id: &ProgramId| self.programs[*id].names(STOP);
        let mut longest: BTreeMap<ProgramId, Millis> = BTreeMap::new();
        // A program stops after its dependents: they come first in this order.
        for id in self.leave_order(group) {
            let after =
                self.dependencies_on(id).iter().filter_map(|edge| longest.get(&self.dependencies[*edge].dependent));
            let longest_before = after.copied().max().unwrap_or_default();
            longest.insert(id, Millis(longest_before.0 + self.programs[id].killwait.0));
        }
        // A shutdown gives each program as long as this.
        let stop = longest.into_values().max().unwrap_or_default().max(self.killwait);
        let clean_up = members.iter().filter(|id| is_clean_up(id)).map(|id| {
            let policy = &self.programs[*id];
            policy.health.run_timeout.unwrap_or(policy.killwait).0 + policy.killwait.0
        });
        Millis(stop.0 + clean_up.sum::<u64>())
    }

    /// Makes a program stop before another one in a shutdown, without a dependency on it.
    pub fn add_stop_order(&mut self, first: ProgramId, last: ProgramId) {
        self.gated[last].push(first);
        self.after_gates[first].push(last);
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

    /// The programs that stop before this one if both are to stop: its dependents, and the later ones of its group that
    /// rely on its effects.
    pub fn dependents(&self, on: ProgramId) -> BTreeSet<ProgramId> {
        let dependents = self.dependencies_on(on).iter().map(|dependency| self.dependencies[*dependency].dependent);
        dependents.chain(self.gated[on].iter().copied()).collect()
    }

    /// The group of a name.
    pub fn group(&self, name: &str) -> Option<GroupId> {
        self.groups.iter().find(|(_, group)| &*group.name == name).map(|(id, _)| id)
    }

    /// All programs by name.
    pub fn names(&self) -> BTreeMap<Arc<str>, ProgramId> {
        self.programs.iter().map(|(id, policy)| (policy.name.clone(), id)).collect()
    }
}
