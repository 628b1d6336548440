//! The state of one program.
//!
//! ```text
//!            Starting             Started             Stopping
//!     Down -----------> Starting ---------> Up --------------------> Stopping
//!      ^                   | SpawnFailed     | Exited                   | Exited
//!      +-------------------+-----------------+--------------------------+
//! ```
//!
//! A program whose end leaves something that stands, a mounted disk for instance, goes from Up to `ActiveExited` instead, and from
//! there by Stopping, while its stop command undoes that, to Down.

mod apply;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    base::{
        ids::{InstanceId, Seq},
        time::Instant,
    },
    event::{ProgramEvent, StopReason},
    graph::{Condition, Dependency, Policy},
    host::probe::UnhealthyReason,
    process::{ExitStatus, SpawnStage, StartTime},
};

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Down => "down",
            Self::Starting => "starting",
            Self::Up => "up",
            Self::Stopping => "stopping",
            Self::ActiveExited => "active_exited",
        })
    }
}

/// The phase of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// There is none.
    #[default]
    Down,
    /// It was asked for and has not yet been reported.
    Starting,
    /// Its command runs.
    Up,
    /// It was asked to end, or what it has done is being undone.
    Stopping,
    /// It has ended well, and what it has done stands.
    ActiveExited,
}

/// Whether its group lets a program run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Membership {
    /// It has no group.
    #[default]
    Ungrouped,
    /// Its group is at another level, or has not come to it yet.
    Stopped,
    /// It was let in, by this event or because of it.
    Admitted(Seq),
}

/// How the last run ended, or why it never was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It ran and ended.
    Exited(ExitStatus),
    /// It could not be started.
    SpawnFailed {
        /// The step that failed.
        stage: SpawnStage,
        /// The error number.
        errno: i32,
    },
}

/// That an instance is to be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingStop {
    /// Why.
    pub reason: StopReason,
    /// Whether what it depends on is still up, so that its own dependents can go first.
    pub dependents_first: bool,
    /// Since when that is known.
    pub since: Instant,
}

/// How an instance is made to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopMethod {
    /// A signal to everything that it consists of: it has no stop command, or that has failed.
    Signal,
    /// Its stop command, which runs beside it.
    Command,
    /// It has ended, and what it has done is undone by its stop command, which is its process meanwhile.
    Undo,
}

impl StopMethod {
    /// How a stop begins.
    fn first(policy: &Policy, phase: Phase) -> Self {
        match phase {
            Phase::ActiveExited => Self::Undo,
            _ if policy.has_stop_command => Self::Command,
            Phase::Down | Phase::Starting | Phase::Up | Phase::Stopping => Self::Signal,
        }
    }
}

/// The stop of an instance, while it is stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// How it is made to end.
    pub method: StopMethod,
    /// When it will be killed; `None` once that was asked for.
    pub kill_at: Option<Instant>,
}

/// The state of one program.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramState {
    /// The phase of its instance.
    pub phase: Phase,
    /// The last run, or the one that is; 0 before the first.
    pub instance: InstanceId,
    /// The process id while there is a process.
    pub pid: Option<i32>,
    /// When that process began.
    pub start_time: StartTime,
    /// When the instance came up.
    pub up_since: Option<Instant>,
    /// When it was ready, if it is.
    #[serde(default)]
    pub ready_since: Option<Instant>,
    /// Whether the process is the daemon that the command has left.
    #[serde(default)]
    pub daemonized: bool,
    /// What is wrong with the instance, or was with the last.
    #[serde(default)]
    pub unhealthy_reason: Option<UnhealthyReason>,
    /// When the phase last changed.
    pub phase_since: Instant,
    /// The event that changed it.
    pub phase_event: Seq,
    /// Whether its group lets it run.
    #[serde(default)]
    pub membership: Membership,
    /// Whether a start is owed: at boot, after an end that is to be followed by a start, or because an operator asked.
    pub start_pending: bool,
    /// Whether an operator, or the configuration, wants it down. Overrides everything else.
    pub operator_down: bool,
    /// That the instance which runs is to be stopped, from the moment that is known.
    pub pending_stop: Option<PendingStop>,
    /// How it is stopped, in the phase `Stopping`.
    pub stop: Option<Stop>,
    /// The last event with which the last instance was made to end, if it was: a stop, a signal, a kill.
    #[serde(default)]
    pub stop_event: Option<Seq>,
    /// The event that last took it down, or decided to: dependents that propagate restart once for each.
    pub down_event: Option<Seq>,
    /// How the last run ended.
    pub outcome: Option<Outcome>,
    /// Whether that was a success.
    #[serde(default)]
    pub succeeded: bool,
    /// The number of starts since the last that lasted.
    pub attempts: u32,
    /// Not to be started before this moment.
    pub not_before: Option<Instant>,
    /// When it was started by itself, as far as its limit looks back.
    #[serde(default)]
    pub recent_starts: Vec<Instant>,
    /// Whether it has reached its start limit, and stays down until an operator starts it.
    #[serde(default)]
    pub start_limit_hit: bool,
    /// How many processes are part of what it has done, while that stands.
    #[serde(default)]
    pub kept: u16,
    /// How often it has been started again.
    pub restarts: u64,
    /// The number of its dependencies that are not satisfied.
    pub unsatisfied: u32,
    /// The original's counter: 1, and 1 more for each start, end, and wish of an operator.
    pub revision: u64,
    /// The last event that concerned it.
    pub last_seq: Seq,
}

impl ProgramState {
    /// The state of a program that was never started.
    pub fn new(policy: &Policy, dependencies: usize) -> Self {
        Self {
            phase: Phase::Down,
            instance: InstanceId(0),
            pid: None,
            start_time: StartTime::default(),
            up_since: None,
            ready_since: None,
            daemonized: false,
            unhealthy_reason: None,
            phase_since: Instant::default(),
            phase_event: Seq(0),
            membership: if policy.group.is_some() { Membership::Stopped } else { Membership::Ungrouped },
            start_pending: policy.autostart && policy.group.is_none(),
            operator_down: !policy.autostart,
            pending_stop: None,
            stop: None,
            stop_event: None,
            down_event: None,
            outcome: None,
            succeeded: false,
            attempts: 0,
            not_before: None,
            recent_starts: Vec::new(),
            start_limit_hit: false,
            kept: 0,
            restarts: 0,
            unsatisfied: u32::try_from(dependencies).unwrap_or(u32::MAX),
            revision: 1,
            last_seq: Seq(0),
        }
    }

    /// Whether there is something to stop: a process, one on its way, or what one has done.
    pub fn is_running(&self) -> bool {
        self.phase != Phase::Down
    }

    /// When it will be killed, if it is stopping and was not killed yet.
    pub fn kill_at(&self) -> Option<Instant> {
        self.stop?.kill_at
    }

    /// Whether what it has done is being undone: its process is that of its stop command.
    pub fn is_undoing(&self) -> bool {
        self.stop.is_some_and(|stop| stop.method == StopMethod::Undo)
    }

    /// Whether a dependency may count on it: it is up and no stop of it is pending.
    pub fn is_running_and_wanted(&self) -> bool {
        self.phase == Phase::Up && self.pending_stop.is_none()
    }

    /// Since when a dependency may count on it, if it may.
    pub fn satisfied_since(&self, condition: Condition) -> Option<Instant> {
        match condition {
            Condition::Started => self.up_since.filter(|_| self.is_running_and_wanted()),
            Condition::Ready => self.ready_since.filter(|_| self.is_running_and_wanted()),
            Condition::Completed => self.is_completed().then_some(self.phase_since),
        }
    }

    /// When it satisfies, or will satisfy, a dependency on it: after the delay. `None` while it does not.
    pub fn satisfies_at(&self, dependency: &Dependency) -> Option<Instant> {
        Some(self.satisfied_since(dependency.condition)? + dependency.delay)
    }

    /// Whether it is up and ready, and no stop of it is pending.
    pub fn is_ready(&self) -> bool {
        self.is_running_and_wanted() && self.ready_since.is_some()
    }

    /// Whether it has run to its end, well, and is not to run again. A run that was stopped has not run to its end.
    pub fn is_completed(&self) -> bool {
        match self.phase {
            Phase::ActiveExited => self.pending_stop.is_none(),
            Phase::Down => {
                !self.start_pending
                    && self.succeeded
                    && self.stop_event.is_none()
                    && self.membership != Membership::Stopped
            }
            Phase::Starting | Phase::Up | Phase::Stopping => false,
        }
    }

    /// Whether it has run to its end, not well, and is not to run again.
    pub fn has_failed(&self) -> bool {
        self.phase == Phase::Down && !self.start_pending && self.outcome.is_some() && !self.is_completed()
    }

    /// The exit status of an essential program that has ended by itself with this event.
    pub fn essential_exit(&self, event: &ProgramEvent) -> Option<ExitStatus> {
        if let ProgramEvent::Exited { status, remains, .. } = event {
            let unhealthy = self.pending_stop.is_some_and(|stop| stop.reason == StopReason::Unhealthy);
            let wanted = !self.operator_down && !self.start_pending && self.membership != Membership::Stopped;
            let by_itself = self.pending_stop.is_none() || unhealthy && wanted;
            return (by_itself && !remains).then_some(*status);
        }
        let ProgramEvent::SpawnFailed { stage, errno, .. } = event else { return None };
        (!stage.is_transient(*errno)).then_some(ExitStatus::Unknown)
    }
}
