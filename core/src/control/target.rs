//! The programs and groups that a command selects, and the state of them that it waits for.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    base::ids::{GroupId, ProgramId, Seq},
    protocol::WaitState,
    state::{ProgramState, State},
};

/// The programs and groups that a command selects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// Programs that were selected by name or pattern, or, if nothing was, those that are in no group.
    pub programs: BTreeSet<ProgramId>,
    /// Groups.
    pub groups: BTreeSet<GroupId>,
}

/// The programs and groups that have to reach a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The programs, each with a run number: only later runs count.
    pub programs: BTreeMap<ProgramId, u64>,
    /// The groups, each with the earliest level request that counts.
    pub groups: BTreeMap<GroupId, Seq>,
    /// The state.
    pub goal: WaitState,
    /// Whether they were selected by name: a program that runs once is then waited for until it has ended.
    pub is_named: bool,
}

impl Target {
    /// A target for which every run counts.
    pub fn new(Targets { programs, groups }: Targets, goal: WaitState) -> Self {
        let programs = programs.into_iter().map(|id| (id, 0)).collect();
        Self { programs, groups: groups.into_iter().map(|id| (id, Seq(0))).collect(), goal, is_named: false }
    }

    /// The same, selected by these words.
    #[must_use]
    pub fn named(self, words: &[String]) -> Self {
        Self { is_named: !words.is_empty(), ..self }
    }

    /// The same, but only a run that has not begun yet counts, unless `good` accepts the program as it is.
    #[must_use]
    pub fn after(mut self, state: &State, good: impl Fn(&ProgramState) -> bool) -> Self {
        for (program, run) in &mut self.programs {
            let now = &state.programs[*program];
            *run = if good(now) { 0 } else { now.instance.0 };
        }
        for (group, requested) in &mut self.groups {
            *requested = state.groups[*group].requested_by;
        }
        self
    }
}
