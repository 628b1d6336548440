//! The state of one group.

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Membership, ProgramState};
use crate::{
    base::ids::{Level, ProgramId, Seq},
    event::GroupEvent,
    graph::{Group, Policy, RESTART, STOP},
};

/// How far a group has come towards its level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LevelSwitch {
    /// Programs that do not run at its level are stopped, and then those that do are started, one after the other.
    #[default]
    Switching,
    /// It is restarted: its programs are stopped and started or, if some of them name the level `restart`, those are
    /// run.
    Restarting,
    /// It has reached its level.
    Settled,
    /// It has failed before it reached its level.
    Failed,
}

/// The state of one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupState {
    /// The requested level.
    pub level: Level,
    /// The event that requested it; 0 if the configuration did.
    pub requested_by: Seq,
    /// How far it has come towards that level.
    pub level_switch: LevelSwitch,
    /// The program that made it fail since its last level request.
    pub failed_program: Option<Arc<str>>,
    /// Its programs that have to stop and are not down yet.
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

    /// Updates `stopping` for one of its programs.
    pub fn update_member(&mut self, id: ProgramId, program: &ProgramState) {
        if program.membership == Membership::Stopped && program.is_running() {
            self.stopping.insert(id);
        } else {
            self.stopping.remove(&id);
        }
    }

    /// Whether a program runs at its level. At `stop`, programs run, usually to clean up, only after a level request.
    pub fn runs(&self, program: &Policy) -> bool {
        program.runs_at(&self.level) && (self.requested_by > Seq(0) || *self.level != *STOP)
    }

    /// Whether one of its programs may run now: at its level, or for its restart.
    pub fn has(&self, group: &Group, program: &Policy) -> bool {
        self.runs(program) || self.runs_restart(group) && program.names(RESTART)
    }

    /// Whether it is restarted by running its programs of the level `restart`.
    pub fn runs_restart(&self, group: &Group) -> bool {
        self.level_switch == LevelSwitch::Restarting && group.has_restart
    }

    /// Whether it is on the way to its level.
    pub fn is_switching(&self) -> bool {
        matches!(self.level_switch, LevelSwitch::Switching | LevelSwitch::Restarting)
    }
}
