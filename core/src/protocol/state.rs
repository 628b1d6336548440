//! The state of programs, dependencies and groups as a client sees it, in the words of the original gaggled and some
//! more.

mod reason;

use serde::{Deserialize, Serialize};

pub use self::reason::describe;

use super::VERSION;
use crate::{
    base::{
        ids::{EpochId, GroupId, InstanceId, ProgramId, Seq},
        time::{Instant, Millis, WallTime},
    },
    graph::Condition,
    process::{ExitStatus, Outcome, Signal},
    state::{Phase, ProgramState, State, Tenancy},
};

/// The state of a program as a client sees it.
///
/// `uptime_ms`, `wait_ms` and `reason` refer to the moment at which the view was made; everything else changes only
/// with an event of this program.
#[expect(clippy::struct_excessive_bools, reason = "the words of the original")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProgramView<'a> {
    /// Its name.
    pub program: &'a str,
    /// Whether it has a process.
    pub up: bool,
    /// Whether it is ready; a program without a readiness probe is ready as soon as it is up.
    pub ready: bool,
    /// `down`, `starting`, `up`, `stopping` or `active_exited`.
    pub phase: Phase,
    /// The process id, 0 if there is none.
    pub pid: i32,
    /// For how long it has been up, 0 if it is not.
    pub uptime_ms: u64,
    /// The number of its last run; 0 before the first.
    pub instance: InstanceId,
    /// How often it was started again.
    pub restarts: u64,
    /// Whether all its dependencies are satisfied.
    pub dependencies_satisfied: bool,
    /// Whether an operator, or the configuration, wants it down.
    pub operator_down: bool,
    /// Whether gaggled asked the last run to end; false while it is up.
    pub stop_requested: bool,
    /// Whether it has reached its start limit, and stays down until an operator starts it.
    pub start_limit_hit: bool,
    /// The counter of its changes, as in the original gaggled.
    pub revision: u64,
    /// `NONE` while it is up, else `EXIT`, `KILL`, `OOM`, `DUMP`, `UNK`, or empty if it never ran.
    pub exit_kind: &'static str,
    /// The exit code of the last run, if it exited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended the last run, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_signal: Option<i32>,
    /// The step that failed, if it could not be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_stage: Option<crate::process::SpawnStage>,
    /// The error number, if it could not be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
    /// The last event that concerned it.
    pub last_seq: Seq,
    /// Whether the state of a program of another node is known; absent for programs of this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen: Option<bool>,
    /// The reason for its state, in words.
    pub reason: String,
    /// How much longer it has to wait, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
}

impl<'a> ProgramView<'a> {
    /// The view of a program that had this state at a moment, without the reason.
    pub fn without_reason(name: &'a str, program: &ProgramState, now: Instant) -> Self {
        let up = matches!(program.phase, Phase::Up | Phase::Stopping);
        let (exit_kind, exit_code, exit_signal) = match program.outcome {
            _ if up => ("NONE", None, None),
            None => ("", None, None),
            Some(Outcome::SpawnFailed { .. }) => ("EXIT", None, None),
            Some(Outcome::Exited(ExitStatus::Code(code))) => ("EXIT", Some(code), None),
            Some(Outcome::Exited(ExitStatus::Signal(signal))) => ("KILL", None, Some(signal)),
            Some(Outcome::Exited(ExitStatus::OutOfMemory)) => ("OOM", None, Some(Signal::KILL.0)),
            Some(Outcome::Exited(ExitStatus::Core(signal))) => ("DUMP", None, Some(signal)),
            Some(Outcome::Exited(ExitStatus::Unknown)) => ("UNK", None, None),
        };
        let failed = match program.outcome {
            Some(Outcome::SpawnFailed { stage, errno }) if !up => Some((stage, errno)),
            _ => None,
        };
        Self {
            program: name,
            up,
            ready: up && program.is_ready(),
            phase: program.phase,
            pid: program.pid().unwrap_or(0),
            uptime_ms: program.up_since.filter(|_| up).map_or(0, |since| now.since(since).0),
            instance: program.instance,
            restarts: program.restarts,
            dependencies_satisfied: program.unsatisfied == 0,
            operator_down: program.operator_down,
            stop_requested: program.stop_event.is_some() && program.phase == Phase::Down,
            start_limit_hit: program.start_limit_hit,
            revision: program.revision,
            exit_kind,
            exit_code,
            exit_signal,
            failed_stage: failed.map(|(stage, _)| stage),
            errno: failed.map(|(_, errno)| errno),
            last_seq: program.last_seq,
            seen: program.remote.as_ref().map(|remote| remote.unseen.is_none()),
            reason: String::new(),
            wait_ms: None,
        }
    }
}

/// A dependency as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DependencyView {
    /// The program that depends.
    pub dependent: String,
    /// The program it depends on.
    pub dependency: String,
    /// What is waited for: `Started`, `Ready` or `Completed`.
    #[serde(default)]
    pub condition: Condition,
    /// How long the condition must have been met.
    pub delay_ms: Millis,
    /// Whether the dependent goes down with it.
    pub propagate: bool,
    /// Whether it is satisfied.
    pub satisfied: bool,
}

/// A group as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    /// Its name.
    pub group: String,
    /// The requested level.
    pub level: String,
    /// `stopped`, `stopping`, `starting`, `up`, `degraded`, `passed`, `done` or `failed`.
    pub state: GroupStatus,
    /// Its programs, in the order of the configuration.
    pub programs: Vec<String>,
    /// Why it is as it is, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The node that holds it, if it runs on one node at a time and that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// Its token, if this node holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
}

/// The status of a group, derived from its programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupStatus {
    /// None of its programs runs, and none should.
    Stopped,
    /// Programs that do not run at its level are being stopped.
    Stopping,
    /// Programs of its level are being started.
    Starting,
    /// All programs that should run do.
    Up,
    /// A program that should run does not.
    Degraded,
    /// There were only tests to run, and all have passed.
    Passed,
    /// All its programs have run to their end.
    Done,
    /// A program that holds back others has not ended well.
    Failed,
}

/// The state of all programs.
#[derive(Clone, Debug, Serialize)]
pub struct Dump<'a> {
    /// The version of the protocol.
    pub v: u32,
    /// The epoch.
    pub epoch: EpochId,
    /// The last event that is in it.
    pub seq: Seq,
    /// When it was made.
    pub time: WallTime,
    /// Whether everything is being stopped.
    pub shutting_down: bool,
    /// The programs, in the order of the configuration.
    pub programs: Vec<ProgramView<'a>>,
    /// The dependencies, in the order of the configuration.
    pub dependencies: Vec<DependencyView>,
    /// The groups, in the order of the configuration, on the first page.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupView>,
    /// Where the next page begins, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<usize>,
}

/// A view of a state at one moment.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    state: &'a State,
    now: Instant,
}

impl<'a> View<'a> {
    /// The view of a state at a moment.
    pub fn at(state: &'a State, now: Instant) -> Self {
        Self { state, now }
    }

    /// One program.
    pub fn program(self, id: ProgramId) -> ProgramView<'a> {
        let program = &self.state.programs[id];
        let (reason, wait) = self.reason(id, program);
        let view = ProgramView::without_reason(&self.state.graph.programs[id].name, program, self.now);
        ProgramView { reason, wait_ms: wait.map(|wait| wait.0), ..view }
    }

    /// All programs from the one at `from`, at most `limit` of them.
    pub fn dump(self, wall: WallTime, from: usize, limit: usize) -> Dump<'a> {
        let graph = &self.state.graph;
        // A program that is no longer configured is shown until it has stopped.
        let shown = |id: &ProgramId| !graph.programs[*id].unconfigured || self.state.programs[*id].is_running();
        let page = || graph.programs.ids().skip(from).take(limit).filter(shown);
        let end = from.saturating_add(limit);
        Dump {
            v: VERSION,
            epoch: self.state.epoch,
            seq: self.state.seq,
            time: wall,
            shutting_down: self.state.shutdown.is_some(),
            programs: page().map(|id| self.program(id)).collect(),
            dependencies: page().flat_map(|id| self.dependencies(id)).collect(),
            groups: if from == 0 { self.groups() } else { Vec::new() },
            next: (end < graph.programs.len()).then_some(end),
        }
    }

    /// The dependencies of one program.
    pub fn dependencies(self, of: ProgramId) -> impl Iterator<Item = DependencyView> {
        self.state.graph.dependencies_of(of).iter().map(move |dependency| self.dependency(*dependency))
    }

    /// All groups.
    pub fn groups(self) -> Vec<GroupView> {
        self.state.graph.groups.ids().map(|id| self.group(id)).collect()
    }

    /// One group.
    pub fn group(self, id: GroupId) -> GroupView {
        let (graph, group) = (&self.state.graph, &self.state.groups[id]);
        let members = &graph.groups[id].members;
        let (state, reason) = self.group_word(group, members);
        let token = group.tenancy.as_ref().and_then(Tenancy::token);
        let own = graph.groups[id].tenancy.as_ref().filter(|_| token.is_some()).map(|policy| policy.node.to_string());
        let elsewhere = if let Some(Tenancy::Away { holder, .. }) = &group.tenancy { holder.as_deref() } else { None };
        let reason = match group.tenancy.as_ref().map(Self::tenancy_words).filter(|words| !words.is_empty()) {
            Some(words) if reason.is_empty() => words,
            Some(words) => format!("{words}; {reason}"),
            None => reason,
        };
        GroupView {
            holder: own.or(elsewhere.map(str::to_owned)),
            token,
            group: graph.groups[id].name.to_string(),
            level: group.level.to_string(),
            state,
            programs: members.iter().map(|id| graph.programs[*id].name.to_string()).collect(),
            reason,
        }
    }

    fn dependency(self, id: crate::base::ids::DependencyId) -> DependencyView {
        let (dependency, state) = self.state.dependency(id);
        let name = |id: ProgramId| self.state.graph.programs[id].name.to_string();
        DependencyView {
            dependent: name(dependency.dependent),
            dependency: name(dependency.dependency),
            condition: dependency.condition,
            delay_ms: dependency.delay,
            propagate: dependency.propagate,
            satisfied: state.satisfied.is_some(),
        }
    }
}
