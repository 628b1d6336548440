//! Events, named in the past tense, and the envelope that numbers them.
//!
//! An event is self-contained, and concerns one program, dependency or group, or the system. On the wire it contains
//! names, not ids; see [`crate::protocol`].

mod remote;
mod system;

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

pub use self::remote::RemoteEvent;
pub use self::system::{Handover, StartKind, SystemEvent};
use crate::{
    base::{
        ids::{DependencyId, EpochId, GroupId, InstanceId, Level, ProgramId, Seq},
        time::{Instant, WallTime},
    },
    host::probe::UnhealthyReason,
    process::{ExitStatus, Signal, SpawnStage, StartTime},
};

/// An event with its number, its time and its cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Its number.
    pub seq: Seq,
    /// The epoch it belongs to.
    pub epoch: EpochId,
    /// When it was committed.
    pub monotonic: Instant,
    /// The wall time of that, for people.
    pub time: WallTime,
    /// Why it happened.
    pub cause: Cause,
    /// What happened.
    pub event: Event,
}

/// Why an event happened. A causing event has a smaller number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The daemon began.
    DaemonStart,
    /// A client asked for it.
    Operator {
        /// Who: user id and process id, or the address.
        who: Arc<str>,
        /// The id of the command.
        command: Arc<str>,
    },
    /// Another event.
    Event(Seq),
    /// The end of a delay that began with this event.
    Timer(Seq),
    /// The operating system reported it.
    Kernel,
    /// Another node published it.
    Remote(Box<RemoteCause>),
    /// The cluster showed it: a session that ended or began, or silence.
    Cluster,
}

/// Why something happened on another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteCause {
    /// The node.
    pub node: Arc<str>,
    /// When, by the clock of that node.
    pub time: WallTime,
    /// The events there that led to it, in words, the last one first.
    #[serde(default)]
    pub why: Vec<Arc<str>>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// To a program.
    Program(ProgramId, ProgramEvent),
    /// To a program of another node.
    Remote(ProgramId, RemoteEvent),
    /// To a dependency, and so to the program that has it.
    Dependency(DependencyId, DependencyEvent),
    /// To a group.
    Group(GroupId, GroupEvent),
    /// To the whole system.
    System(SystemEvent),
}

/// What can happen to a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event")]
pub enum ProgramEvent {
    /// It is about to be started: committed before the fork.
    #[serde(rename = "ProgramStarting")]
    Starting {
        /// The run that begins.
        instance: InstanceId,
    },
    /// Its command runs.
    #[serde(rename = "ProgramStarted")]
    Started {
        /// The run.
        instance: InstanceId,
        /// Its process id.
        pid: i32,
        /// When that process began: together with the process id this identifies it.
        start_time: StartTime,
    },
    /// It was found running when this daemon started: it has survived the previous one.
    #[serde(rename = "ProgramAdopted")]
    Adopted {
        /// The run.
        instance: InstanceId,
        /// Its process id.
        pid: i32,
        /// When that process began.
        start_time: StartTime,
    },
    /// Its command has ended and has left a daemon, which is its main process from now on.
    #[serde(rename = "ProgramDaemonized")]
    Daemonized {
        /// The run.
        instance: InstanceId,
        /// The process id of the daemon.
        pid: i32,
        /// When that process began.
        start_time: StartTime,
    },
    /// It is ready.
    #[serde(rename = "ProgramReady")]
    Ready {
        /// The run.
        instance: InstanceId,
    },
    /// It runs, and has failed its readiness probe, health check, watchdog or time limit.
    #[serde(rename = "ProgramUnhealthy")]
    Unhealthy {
        /// The run.
        instance: InstanceId,
        /// What is wrong with it.
        reason: UnhealthyReason,
    },
    /// It could not be started.
    #[serde(rename = "ProgramSpawnFailed")]
    SpawnFailed {
        /// The run that never began.
        instance: InstanceId,
        /// The step that failed.
        stage: SpawnStage,
        /// The error number of the system call.
        errno: i32,
    },
    /// It is asked to end: committed before the signal.
    #[serde(rename = "ProgramStopping")]
    Stopping {
        /// The run that ends.
        instance: InstanceId,
        /// Why.
        reason: StopReason,
        /// When it will be killed.
        #[serde(rename = "kill_at_us")]
        kill_at: Instant,
    },
    /// Its stop command failed, so that it is stopped by a signal, as without a stop command.
    #[serde(rename = "ProgramStopCommandFailed")]
    StopCommandFailed {
        /// The run that is to end.
        instance: InstanceId,
        /// How the command ended; [`ExitStatus::Unknown`] if it could not be run.
        status: ExitStatus,
    },
    /// It did not end in time and is killed.
    #[serde(rename = "ProgramKillRequested")]
    KillRequested {
        /// The run that is killed.
        instance: InstanceId,
    },
    /// Its main process has ended, and so have its other processes, except those that are to run on.
    #[serde(rename = "ProgramExited")]
    Exited {
        /// The run that ended.
        instance: InstanceId,
        /// How.
        status: ExitStatus,
        /// How many processes its main process left: they were killed or, if the program keeps them, run on.
        orphans: u16,
        /// Whether its effects remain until it is stopped.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        remains: bool,
    },
    /// Its group lets it run: it is started, or, if it runs, started again.
    #[serde(rename = "LevelStartRequested")]
    LevelStartRequested {
        /// The event that has requested that.
        requested_by: Seq,
    },
    /// Its group goes to a level at which it does not run.
    #[serde(rename = "LevelStopRequested")]
    LevelStopRequested {
        /// The event that has requested that.
        requested_by: Seq,
    },
    /// An operator sent it a signal.
    #[serde(rename = "ProgramSignalled")]
    Signalled {
        /// The run it was sent to.
        instance: InstanceId,
        /// The signal.
        signal: Signal,
    },
    /// An operator wants it down.
    #[serde(rename = "StopRequested")]
    StopRequested,
    /// An operator wants it up.
    #[serde(rename = "StartRequested")]
    StartRequested,
    /// An operator wants it stopped if it runs, and then started.
    #[serde(rename = "RestartRequested")]
    RestartRequested,
}

/// Why an instance is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// An operator wants it down or restarted.
    Operator,
    /// A program it depends on went down.
    DependencyDown,
    /// Its group goes to another level, or is restarted.
    Level,
    /// It is unhealthy.
    Unhealthy,
    /// gaggled shuts down.
    Shutdown,
}

/// What can happen to a dependency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event")]
pub enum DependencyEvent {
    /// The program that it is on has met its condition, in one instance, for the delay.
    #[serde(rename = "DependencySatisfied")]
    Satisfied {
        /// The run of the program that it is on.
        #[serde(rename = "dependency_instance")]
        instance: InstanceId,
    },
    /// The program that it is on is no longer up, or is about to be stopped.
    #[serde(rename = "DependencyBroken")]
    Broken,
    /// The program that it is on went down and the dependency propagates that: the dependent restarts.
    #[serde(rename = "RestartTriggered")]
    RestartTriggered {
        /// The event that took it down. Each has exactly one restart for each dependency.
        down_event: Seq,
        /// Whether it has yet to be stopped, so that the dependent goes first; else it is down already.
        before_stop: bool,
    },
}

/// What can happen to a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event")]
pub enum GroupEvent {
    /// An operator wants it at a level.
    #[serde(rename = "GroupLevelRequested")]
    LevelRequested {
        /// The level.
        level: Level,
    },
    /// An operator wants it restarted: stopped and started, or its programs of level `restart` run.
    #[serde(rename = "GroupRestartRequested")]
    RestartRequested,
    /// It has reached its level: programs that do not run at the level are down, and those that do have been started.
    #[serde(rename = "GroupLevelReached")]
    LevelReached {
        /// The event that has requested this level.
        requested_by: Seq,
    },
    /// A program of mode `Wait` or `Test` did not end well, so that the programs after it are not started.
    #[serde(rename = "GroupFailed")]
    Failed {
        /// The event that has requested this level.
        requested_by: Seq,
        /// The program.
        failed_program: Arc<str>,
    },
    /// It has failed, and goes to the level that its `on_failure` names.
    #[serde(rename = "GroupFallbackStarted")]
    FallbackStarted {
        /// The level.
        level: Level,
    },
    /// It runs on one node at a time, and this node wants to take it over: committed before the claim is written.
    #[serde(rename = "GroupClaimStarted")]
    ClaimStarted {
        /// A name for this attempt.
        attempt: Arc<str>,
        /// The revision of the claim that this node has seen, which nothing may have changed; 0 if there was none.
        over: u64,
    },
    /// It could not be claimed.
    #[serde(rename = "GroupClaimFailed")]
    ClaimFailed {
        /// The attempt.
        attempt: Arc<str>,
    },
    /// This node holds it.
    #[serde(rename = "GroupHeld")]
    Held {
        /// The attempt.
        attempt: Arc<str>,
        /// Its token: each holder has a larger one than those before.
        token: u64,
    },
    /// This node leaves it to others: it is stopped first.
    #[serde(rename = "GroupLeaving")]
    Leaving {
        /// Why.
        reason: LeaveReason,
    },
    /// Nothing of it runs here any more: another node may take it.
    #[serde(rename = "GroupReleased")]
    Released {
        /// The token that this node has had.
        token: u64,
    },
    /// Another node holds it, or none.
    #[serde(rename = "GroupHolderSeen")]
    HolderSeen {
        /// The node.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<Arc<str>>,
    },
}

/// Why a node leaves a group to others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaveReason {
    /// The node has not reached a majority of the store for so long that others may take the group.
    PermitEnded,
    /// The claim is another's.
    ClaimLost,
    /// This program of the group cannot run here.
    Failed {
        /// The program.
        program: Arc<str>,
    },
    /// An operator has ordered it to move.
    Moved {
        /// The node to which.
        to: Arc<str>,
    },
    /// An operator has ordered that this node runs no such group.
    Drained,
}

impl GroupEvent {
    /// Whether it is about which node runs the group.
    pub fn is_of_tenancy(&self) -> bool {
        match self {
            Self::ClaimStarted { .. }
            | Self::ClaimFailed { .. }
            | Self::Held { .. }
            | Self::Leaving { .. }
            | Self::Released { .. }
            | Self::HolderSeen { .. } => true,
            Self::LevelRequested { .. }
            | Self::RestartRequested
            | Self::LevelReached { .. }
            | Self::Failed { .. }
            | Self::FallbackStarted { .. } => false,
        }
    }
}

impl fmt::Display for LeaveReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PermitEnded => f.write_str("the cluster could not be reached"),
            Self::ClaimLost => f.write_str("the claim is another's"),
            Self::Failed { program } => write!(f, "{program} failed"),
            Self::Moved { to } => write!(f, "it is to move to {to}"),
            Self::Drained => f.write_str("the node is drained"),
        }
    }
}

impl ProgramEvent {
    /// Whether the program has something to stop from this event on: a process, a start under way, or effects to undo;
    /// `None` if the event does not change that.
    pub fn sets_running(&self) -> Option<bool> {
        match self {
            Self::Starting { .. } => Some(true),
            Self::SpawnFailed { .. } => Some(false),
            Self::Exited { remains, .. } => Some(*remains),
            Self::Started { .. }
            | Self::Adopted { .. }
            | Self::Daemonized { .. }
            | Self::Ready { .. }
            | Self::Unhealthy { .. }
            | Self::Stopping { .. }
            | Self::StopCommandFailed { .. }
            | Self::KillRequested { .. }
            | Self::Signalled { .. }
            | Self::LevelStartRequested { .. }
            | Self::LevelStopRequested { .. }
            | Self::StopRequested
            | Self::StartRequested
            | Self::RestartRequested => None,
        }
    }
}

impl Event {
    /// The name of the event, as on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Program(_, event) => match event {
                ProgramEvent::Starting { .. } => "ProgramStarting",
                ProgramEvent::Started { .. } => "ProgramStarted",
                ProgramEvent::Adopted { .. } => "ProgramAdopted",
                ProgramEvent::Daemonized { .. } => "ProgramDaemonized",
                ProgramEvent::Ready { .. } => "ProgramReady",
                ProgramEvent::Unhealthy { .. } => "ProgramUnhealthy",
                ProgramEvent::SpawnFailed { .. } => "ProgramSpawnFailed",
                ProgramEvent::Stopping { .. } => "ProgramStopping",
                ProgramEvent::StopCommandFailed { .. } => "ProgramStopCommandFailed",
                ProgramEvent::KillRequested { .. } => "ProgramKillRequested",
                ProgramEvent::Exited { .. } => "ProgramExited",
                ProgramEvent::Signalled { .. } => "ProgramSignalled",
                ProgramEvent::LevelStartRequested { .. } => "LevelStartRequested",
                ProgramEvent::LevelStopRequested { .. } => "LevelStopRequested",
                ProgramEvent::StopRequested => "StopRequested",
                ProgramEvent::StartRequested => "StartRequested",
                ProgramEvent::RestartRequested => "RestartRequested",
            },
            Self::Remote(_, event) => event.name(),
            Self::Dependency(_, event) => match event {
                DependencyEvent::Satisfied { .. } => "DependencySatisfied",
                DependencyEvent::Broken => "DependencyBroken",
                DependencyEvent::RestartTriggered { .. } => "RestartTriggered",
            },
            Self::Group(_, event) => match event {
                GroupEvent::LevelRequested { .. } => "GroupLevelRequested",
                GroupEvent::RestartRequested => "GroupRestartRequested",
                GroupEvent::LevelReached { .. } => "GroupLevelReached",
                GroupEvent::Failed { .. } => "GroupFailed",
                GroupEvent::FallbackStarted { .. } => "GroupFallbackStarted",
                GroupEvent::ClaimStarted { .. } => "GroupClaimStarted",
                GroupEvent::ClaimFailed { .. } => "GroupClaimFailed",
                GroupEvent::Held { .. } => "GroupHeld",
                GroupEvent::Leaving { .. } => "GroupLeaving",
                GroupEvent::Released { .. } => "GroupReleased",
                GroupEvent::HolderSeen { .. } => "GroupHolderSeen",
            },
            Self::System(event) => match event {
                SystemEvent::DaemonStarted { .. } => "DaemonStarted",
                SystemEvent::HandoverStarted { .. } => "HandoverStarted",
                SystemEvent::JournalDegraded { .. } => "JournalDegraded",
                SystemEvent::JournalRestored { .. } => "JournalRestored",
                SystemEvent::JournalDamaged { .. } => "JournalDamaged",
                SystemEvent::ShutdownStarted => "ShutdownStarted",
                SystemEvent::ShutdownCompleted { .. } => "ShutdownCompleted",
                SystemEvent::CommandRefused { .. } => "CommandRefused",
                SystemEvent::ActorPanicked { .. } => "ActorPanicked",
            },
        }
    }
}

impl Cause {
    /// The event that this cause leads back to, if it is one.
    pub fn event(&self) -> Option<Seq> {
        match self {
            Self::Event(seq) | Self::Timer(seq) => Some(*seq),
            Self::DaemonStart | Self::Operator { .. } | Self::Kernel | Self::Remote(_) | Self::Cluster => None,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DaemonStart => f.write_str("daemon start"),
            Self::Operator { who, .. } => write!(f, "operator {who}"),
            Self::Event(seq) => write!(f, "event {seq}"),
            Self::Timer(seq) => write!(f, "timer of event {seq}"),
            Self::Kernel => f.write_str("kernel"),
            Self::Remote(cause) => write!(f, "node {}", cause.node),
            Self::Cluster => f.write_str("cluster"),
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Operator => "an operator asked for it",
            Self::DependencyDown => "a program it depends on went down",
            Self::Level => "its group changes its level or restarts",
            Self::Unhealthy => "it is unhealthy",
            Self::Shutdown => "gaggled shuts down",
        })
    }
}
