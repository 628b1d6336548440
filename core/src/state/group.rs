//! The state of one group.

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Place, ProgramState};
use crate::{
    event::GroupEvent,
    graph::{Group, Level, Policy, RESTART, STOP},
    ids::{ProgramId, Seq},
};

/// Where a group is on its way to its level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// What does not run at its level goes, and then what does run there comes, one after the other.
    #[default]
    Moving,
    /// It is restarted: everything goes and comes again, or what its programs have for that is run.
    Restarting,
    /// It is there.
    Reached,
    /// It has failed on the way.
    Failed,
}

/// The state of one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupState {
    /// The level it is told to be at.
    pub level: Level,
    /// The event that has told it so; 0 if it was the configuration.
    pub told: Seq,
    /// Where it is on its way there.
    pub standing: Standing,
    /// The program because of which it has failed since somebody last told it anything.
    pub failed: Option<Arc<str>>,
    /// Its programs that have to leave and are still there.
    #[serde(default)]
    pub going: BTreeSet<ProgramId>,
}
impl GroupState {
    /// The state of a group that nobody has told anything.
    pub fn new(group: &Group) -> Self {
        Self {
            level: group.home.clone(),
            told: Seq(0),
            standing: Standing::Moving,
            failed: None,
            going: BTreeSet::new(),
        }
    }

    /// Folds an event of the group itself.
    pub fn apply(&mut self, seq: Seq, event: &GroupEvent) {
        match event {
            GroupEvent::Told { level } => {
                self.level = level.clone();
                self.move_anew(seq, Standing::Moving);
                self.failed = None;
            }
            GroupEvent::Restarted => {
                self.move_anew(seq, Standing::Restarting);
                self.failed = None;
            }
            GroupEvent::Reached { .. } => self.standing = Standing::Reached,
            GroupEvent::Failed { by, .. } => {
                self.standing = Standing::Failed;
                self.failed = Some(by.clone());
            }
            GroupEvent::FellBack { level } => {
                self.level = level.clone();
                self.move_anew(seq, Standing::Moving);
            }
        }
    }

    fn move_anew(&mut self, told: Seq, standing: Standing) {
        self.told = told;
        self.standing = standing;
    }

    /// Looks whether one of its programs has to leave and is still there.
    pub fn look_at(&mut self, id: ProgramId, program: &ProgramState) {
        if program.place == Place::Out && program.is_running() {
            self.going.insert(id);
        } else {
            self.going.remove(&id);
        }
    }

    /// Whether a program runs at its level. One that comes up at `stop`, and that nobody has told anything, has nothing to
    /// clean up.
    pub fn runs(&self, program: &Policy) -> bool {
        program.runs_at(&self.level) && (self.told > Seq(0) || *self.level != *STOP)
    }

    /// Whether one of its programs has a place in it now: at its level, or for a restart.
    pub fn has(&self, group: &Group, program: &Policy) -> bool {
        self.runs(program) || self.runs_restart(group) && program.names(RESTART)
    }

    /// Whether its programs have something to run for a restart, and that is what they do.
    pub fn runs_restart(&self, group: &Group) -> bool {
        self.standing == Standing::Restarting && group.has_restart
    }

    /// Whether it is on its way.
    pub fn moves(&self) -> bool {
        matches!(self.standing, Standing::Moving | Standing::Restarting)
    }
}
