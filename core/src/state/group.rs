//! The state of one group.

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Membership, ProgramState};
use crate::{
    base::ids::{Level, ProgramId, Seq},
    event::GroupEvent,
    graph::{Group, Policy, RESTART, STOP},
};

/// Where a group is on its way to its level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LevelSwitch {
    /// What does not run at its level goes, and then what does run there comes, one after the other.
    #[default]
    Switching,
    /// It is restarted: everything goes and comes again, or what its programs have for that is run.
    Restarting,
    /// It is there.
    Settled,
    /// It has failed on the way.
    Failed,
}

/// The state of one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupState {
    /// The requested level.
    pub level: Level,
    /// The event that requested it; 0 if the configuration did.
    pub requested_by: Seq,
    /// Where it is on its way there.
    pub level_switch: LevelSwitch,
    /// The program because of which it has failed since its last level request.
    pub failed_program: Option<Arc<str>>,
    /// Its programs that have to leave and are still there.
    #[serde(default)]
    pub stopping: BTreeSet<ProgramId>,
}
impl GroupState {
    /// The state of a group before any level request.
    pub fn new(group: &Group) -> Self {
        Self {
            level: group.default_level.clone(),
            requested_by: Seq(0),
            level_switch: LevelSwitch::Switching,
            failed_program: None,
            stopping: BTreeSet::new(),
        }
    }

    /// Folds an event of the group itself.
    pub fn apply(&mut self, seq: Seq, event: &GroupEvent) {
        match event {
            GroupEvent::LevelRequested { level } => {
                self.level = level.clone();
                self.begin_switch(seq, LevelSwitch::Switching);
                self.failed_program = None;
            }
            GroupEvent::RestartRequested => {
                self.begin_switch(seq, LevelSwitch::Restarting);
                self.failed_program = None;
            }
            GroupEvent::LevelReached { .. } => self.level_switch = LevelSwitch::Settled,
            GroupEvent::Failed { failed_program, .. } => {
                self.level_switch = LevelSwitch::Failed;
                self.failed_program = Some(failed_program.clone());
            }
            GroupEvent::FallbackStarted { level } => {
                self.level = level.clone();
                self.begin_switch(seq, LevelSwitch::Switching);
            }
        }
    }

    fn begin_switch(&mut self, requested_by: Seq, standing: LevelSwitch) {
        self.requested_by = requested_by;
        self.level_switch = standing;
    }

    /// Looks whether one of its programs has to leave and is still there.
    pub fn update_member(&mut self, id: ProgramId, program: &ProgramState) {
        if program.membership == Membership::Stopped && program.is_running() {
            self.stopping.insert(id);
        } else {
            self.stopping.remove(&id);
        }
    }

    /// Whether a program runs at its level. A group that comes up at `stop`, without any level request, has nothing to
    /// clean up.
    pub fn runs(&self, program: &Policy) -> bool {
        program.runs_at(&self.level) && (self.requested_by > Seq(0) || *self.level != *STOP)
    }

    /// Whether one of its programs has a place in it now: at its level, or for a restart.
    pub fn has(&self, group: &Group, program: &Policy) -> bool {
        self.runs(program) || self.runs_restart(group) && program.names(RESTART)
    }

    /// Whether its programs have something to run for a restart, and that is what they do.
    pub fn runs_restart(&self, group: &Group) -> bool {
        self.level_switch == LevelSwitch::Restarting && group.has_restart
    }

    /// Whether it is on its way.
    pub fn is_switching(&self) -> bool {
        matches!(self.level_switch, LevelSwitch::Switching | LevelSwitch::Restarting)
    }
}
