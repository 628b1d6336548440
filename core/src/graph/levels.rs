//! The levels of groups, and the order in which the programs of a group leave one.

use std::collections::BTreeSet;

use super::{Graph, RESTART, START, STOP};
use crate::base::ids::{GroupId, Level, ProgramId};

impl Graph {
    /// Whether this level can be requested of a group: one of its programs names it, or it is one that every group has.
    pub fn has_level(&self, group: GroupId, level: &str) -> bool {
        let group = &self.groups[group];
        let everywhere = [STOP, &group.default_level].contains(&level);
        let open = || group.members.iter().any(|member| self.programs[*member].levels.is_empty());
        let named = || group.members.iter().any(|member| self.programs[*member].names(level));
        level != RESTART && (everywhere || named() || level == START && open())
    }

    /// The levels that can be requested of a group, in the order of their names.
    pub fn levels(&self, group: GroupId) -> Vec<Level> {
        let members = self.groups[group].members.iter().flat_map(|member| self.programs[*member].levels.iter());
        let fixed = [STOP.into(), START.into(), self.groups[group].default_level.clone()];
        let all: BTreeSet<Level> = members.cloned().chain(fixed).collect();
        all.into_iter().filter(|level| self.has_level(group, level)).collect()
    }

    /// The programs of a group in the order in which they are stopped: dependents first, else the last first.
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
}
