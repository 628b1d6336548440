//! The state of one group.

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Membership, ProgramState};
use crate::{
    base::ids::{Level, ProgramId, Seq},
    event::{GroupEvent, LeaveReason},
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

/// What this node has of a group that runs on one node at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tenancy {
    /// Nothing: none of its programs may run.
    Away {
        /// The node that holds it, as far as is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        holder: Option<Arc<str>>,
        /// Why this node has left it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        left: Option<LeaveReason>,
    },
    /// It is being claimed.
    Claiming {
        /// The name of the attempt.
        attempt: Arc<str>,
        /// The revision of the claim that was seen.
        over: u64,
    },
    /// It is held: its programs may run.
    Held {
        /// Its token.
        token: u64,
        /// The event by which it was held.
        since: Seq,
    },
    /// It is held, and is being stopped for others.
    Leaving {
        /// Its token.
        token: u64,
        /// The event by which this began.
        since: Seq,
        /// Why.
        reason: LeaveReason,
    },
}

impl Tenancy {
    /// Nothing is held, and nothing is known.
    pub const AWAY: Self = Self::Away { holder: None, left: None };

    /// Its token, if it is held.
    pub fn token(&self) -> Option<u64> {
        match self {
            Self::Held { token, .. } | Self::Leaving { token, .. } => Some(*token),
            Self::Away { .. } | Self::Claiming { .. } => None,
        }
    }

    fn apply(&mut self, seq: Seq, event: &GroupEvent) {
        *self = match (event, &*self) {
            (GroupEvent::ClaimStarted { attempt, over }, _) => Self::Claiming { attempt: attempt.clone(), over: *over },
            (GroupEvent::ClaimFailed { .. }, _) => Self::AWAY,
            (GroupEvent::Held { token, .. }, _) => Self::Held { token: *token, since: seq },
            (GroupEvent::Leaving { reason }, known) => {
                Self::Leaving { token: known.token().unwrap_or_default(), since: seq, reason: reason.clone() }
            }
            (GroupEvent::Released { .. }, known) => {
                let left = if let Self::Leaving { reason, .. } = known { Some(reason.clone()) } else { None };
                Self::Away { holder: None, left }
            }
            (GroupEvent::HolderSeen { node }, Self::Away { left, .. }) => {
                Self::Away { holder: node.clone(), left: left.clone() }
            }
            _ => return,
        };
    }
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
    /// What this node has of it, if it runs on one node at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenancy: Option<Tenancy>,
}

impl GroupState {
    /// The state of a group before any level request.
    pub fn new(group: &Group) -> Self {
        Self {
            level: if group.tenancy.is_some() { STOP.into() } else { group.default_level.clone() },
            requested_by: Seq(0),
            level_switch: LevelSwitch::Switching,
            failed_program: None,
            stopping: BTreeSet::new(),
            tenancy: group.tenancy.as_ref().map(|_| Tenancy::AWAY),
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
            GroupEvent::ClaimStarted { .. }
            | GroupEvent::ClaimFailed { .. }
            | GroupEvent::Held { .. }
            | GroupEvent::Leaving { .. }
            | GroupEvent::Released { .. }
            | GroupEvent::HolderSeen { .. } => {
                if let Some(tenancy) = &mut self.tenancy {
                    tenancy.apply(seq, event);
                }
            }
        }
    }

    /// Whether its programs may run here: not if it runs on one node at a time, and this node does not hold it.
    pub fn may_run(&self) -> bool {
        matches!(self.tenancy, None | Some(Tenancy::Held { .. }))
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
