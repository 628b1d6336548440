//! The state of one program.
//!
//! ```text
//!            Starting             Started             Stopping
//!     Down -----------> Starting ---------> Up --------------------> Stopping
//!      ^                   | SpawnFailed     | Exited                   | Exited
//!      +-------------------+-----------------+--------------------------+
//! ```
//!
//! A program whose effects remain after its end, a mounted disk for instance, goes from Up to `ActiveExited` instead,
//! and from there through Stopping, while its stop command undoes them, to Down.

mod apply;
mod remote;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    base::{
        ids::{InstanceId, Seq},
        time::Instant,
    },
    cluster::RemoteRun,
    event::{ProgramEvent, StopReason},
    graph::{Condition, Dependency, Policy},
    host::probe::UnhealthyReason,
    process::{ExitStatus, Outcome, StartTime},
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
    /// There is no instance.
    #[default]
    Down,
    /// Its start was requested, and the host has not reported it yet.
    Starting,
    /// Its command runs.
    Up,
    /// It was asked to end, or its effects are being undone.
    Stopping,
    /// It has ended well, and its effects remain.
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
    /// Its group lets it run, by this event or because of it.
    Admitted(Seq),
}

/// The pending stop of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingStop {
    /// Why.
    pub reason: StopReason,
    /// Whether its dependents stop first: not if it is unhealthy, or if a program that it depends on is down already.
    pub dependents_first: bool,
    /// When that was decided.
    pub since: Instant,
}

/// How an instance is made to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopMethod {
    /// A signal to all its processes: it has no stop command, or the stop command has failed.
    Signal,
    /// Its stop command, which runs beside it.
    Command,
    /// It has ended, and its stop command undoes its effects, and is its main process meanwhile.
    Undo,
}

impl StopMethod {
    /// The method with which a stop begins.
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

/// The main process of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its process id.
    pub pid: i32,
    /// When it began: with that its process id names no other process.
    pub start_time: StartTime,
    /// Whether it is the daemon that the command has left.
    pub daemonized: bool,
}

/// The state of one program.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramState {
    /// The phase of its instance.
    pub phase: Phase,
    /// The current or the last run; 0 before the first.
    pub instance: InstanceId,
    /// The main process while there is one.
    pub process: Option<ProcessInfo>,
    /// When the instance came up.
    pub up_since: Option<Instant>,
    /// When it was ready, if it is.
    #[serde(default)]
    pub ready_since: Option<Instant>,
    /// Why the current or the last instance is unhealthy, if it is.
    #[serde(default)]
    pub unhealthy_reason: Option<UnhealthyReason>,
    /// When the phase last changed.
    pub phase_since: Instant,
    /// The event that changed it.
    pub phase_event: Seq,
    /// Whether its group lets it run.
    #[serde(default)]
    pub membership: Membership,
    /// Whether a start is pending: at boot, after an end with respawn, or because of an operator, its group or a
    /// dependency.
    pub start_pending: bool,
    /// Whether an operator, or the configuration, wants it down. Overrides everything else.
    pub operator_down: bool,
    /// The pending stop of the current instance, from the moment that it is decided.
    pub pending_stop: Option<PendingStop>,
    /// How it is stopped, in the phase `Stopping`.
    pub stop: Option<Stop>,
    /// The last event that made the last instance end, if any did: a stop, a signal, a kill.
    #[serde(default)]
    pub stop_event: Option<Seq>,
    /// The event with which it last went down, or was to be stopped: propagating dependents restart once for each.
    pub down_event: Option<Seq>,
    /// How often it has gone down: how many events `down_event` has named so far.
    #[serde(default)]
    pub falls: u64,
    /// How the last run ended.
    pub outcome: Option<Outcome>,
    /// Whether that was a success.
    #[serde(default)]
    pub succeeded: bool,
    /// The number of starts since the backoff was last reset.
    pub attempts: u32,
    /// Not to be started before this moment.
    pub not_before: Option<Instant>,
    /// The starts that count for its start limit.
    #[serde(default)]
    pub recent_starts: Vec<Instant>,
    /// Whether it has reached its start limit, and stays down until an operator starts it.
    #[serde(default)]
    pub start_limit_hit: bool,
    /// How many of its processes run on, while it is `ActiveExited`.
    #[serde(default)]
    pub kept: u16,
    /// How often it has been started again.
    pub restarts: u64,
    /// The number of its dependencies that are not satisfied.
    pub unsatisfied: u32,
    /// The counter of the original gaggled: 1, and 1 more for each start, end, and request of an operator or its group.
    pub revision: u64,
    /// The last event that concerned it.
    pub last_seq: Seq,
    /// What is known of its run on another node, if it is a program of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Box<RemoteRun>>,
}

impl ProgramState {
    /// The state of a program that was never started.
    pub fn new(policy: &Policy, dependencies: usize) -> Self {
        Self {
            phase: Phase::Down,
            instance: InstanceId(0),
            process: None,
            up_since: None,
            ready_since: None,
            unhealthy_reason: None,
            phase_since: Instant::default(),
            phase_event: Seq(0),
            membership: if policy.group.is_some() { Membership::Stopped } else { Membership::Ungrouped },
            start_pending: policy.autostart && policy.group.is_none(),
            operator_down: !policy.autostart && policy.is_here(),
            pending_stop: None,
            stop: None,
            stop_event: None,
            down_event: None,
            falls: 0,
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
            remote: policy.external.as_ref().map(|_| Box::default()),
        }
    }

    /// Whether there is something to stop here: a process, a start under way, or effects to undo.
    pub fn is_running(&self) -> bool {
        self.phase != Phase::Down && self.remote.is_none()
    }

    /// Whether it is a program of another node, and up there as far as is known.
    pub fn is_up_elsewhere(&self) -> bool {
        self.phase == Phase::Up && self.remote.is_some()
    }

    /// The id of its main process, if there is one.
    pub fn pid(&self) -> Option<i32> {
        self.process.map(|process| process.pid)
    }

    /// Whether its main process is the daemon that its command has left.
    pub fn is_daemonized(&self) -> bool {
        self.process.is_some_and(|process| process.daemonized)
    }

    /// When it will be killed, if it is stopping and was not killed yet.
    pub fn kill_at(&self) -> Option<Instant> {
        self.stop?.kill_at
    }

    /// Whether its effects are being undone: its main process is its stop command.
    pub fn is_undoing(&self) -> bool {
        self.stop.is_some_and(|stop| stop.method == StopMethod::Undo)
    }

    /// Whether it is up and no stop of it is pending.
    pub fn is_running_and_wanted(&self) -> bool {
        self.phase == Phase::Up && self.pending_stop.is_none()
    }

    /// Since when it meets this condition of a dependency, if it does.
    pub fn satisfied_since(&self, condition: Condition) -> Option<Instant> {
        match condition {
            Condition::Started => self.up_since.filter(|_| self.is_running_and_wanted()),
            Condition::Ready => self.ready_since.filter(|_| self.is_running_and_wanted()),
            Condition::Completed => self.is_completed().then_some(self.phase_since),
        }
    }

    /// When it satisfies, or will satisfy, a dependency on it: after the delay. `None` while it does not meet the
    /// condition.
    pub fn satisfies_at(&self, dependency: &Dependency) -> Option<Instant> {
        Some(self.satisfied_since(dependency.condition)? + dependency.delay)
    }

    /// Whether it is up and ready, and no stop of it is pending.
    pub fn is_ready(&self) -> bool {
        self.is_running_and_wanted() && self.ready_since.is_some()
    }

    /// Whether its last run ended by itself and well, and it is not to run again.
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

    /// Whether its last run did not end by itself and well, and it is not to run again.
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
