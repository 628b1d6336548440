//! What a client sees of a program: its whole state, in the original's words and some more.

use serde::{Deserialize, Serialize};

use super::VERSION;
use crate::{
    event::StopReason,
    graph::{Dependency, Mode, Policy, STOP, Until},
    host::{ExitStatus, Signal},
    ids::{EpochId, GroupId, InstanceId, ProgramId, Seq},
    state::{GroupState, Outcome, Phase, Place, ProgramState, Standing, State},
    time::{Instant, Millis, WallTime},
};

/// The state of a program as a client sees it.
///
/// `uptime_ms`, `wait_ms` and `reason` speak of the moment at which it was made; everything else changes only with an
/// event of this program.
#[expect(clippy::struct_excessive_bools, reason = "the words of the original")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProgramView<'a> {
    /// Its name.
    pub program: &'a str,
    /// Whether it has a process.
    pub up: bool,
    /// Whether it is ready; one that cannot show it is ready as soon as it is up.
    pub ready: bool,
    /// `down`, `starting`, `up`, `stopping`, `done`.
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
    pub is_operator_shutdown: bool,
    /// Whether gaggled asked the last run to end; false while it is up.
    pub during_shutdown: bool,
    /// Whether it has ended too often, and is left down until somebody asks it up.
    pub failed: bool,
    /// The original's counter of its changes.
    pub state_sequence: u64,
    /// `NONE` while it is up, else `EXIT`, `KILL`, `DUMP`, `UNK`, or nothing if it never ran.
    pub down_type: &'static str,
    /// The exit code of the last run, if it exited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended the last run, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_signal: Option<i32>,
    /// The step that failed, if it could not be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_stage: Option<crate::host::ExecStage>,
    /// The error number, if it could not be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
    /// The last event that concerned it.
    pub last_seq: Seq,
    /// Why it is as it is, in words.
    pub reason: String,
    /// How long what it waits for will still take, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
}

impl<'a> ProgramView<'a> {
    /// A program of this name as it was at a moment, when this was its state; why is not known any more.
    pub fn past(name: &'a str, program: &ProgramState, now: Instant) -> Self {
        let up = matches!(program.phase, Phase::Up | Phase::Stopping);
        let (down_type, exit_code, exit_signal) = match program.outcome {
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
            pid: program.pid.unwrap_or(0),
            uptime_ms: program.up_since.filter(|_| up).map_or(0, |since| now.since(since).0),
            instance: program.instance,
            restarts: program.restarts,
            dependencies_satisfied: program.unmet == 0,
            is_operator_shutdown: program.operator_down,
            during_shutdown: program.signalled && program.phase == Phase::Down,
            failed: program.given_up,
            state_sequence: program.state_sequence,
            down_type,
            exit_code,
            exit_signal,
            failed_stage: failed.map(|(stage, _)| stage),
            errno: failed.map(|(_, errno)| errno),
            last_seq: program.last_seq,
            reason: String::new(),
            wait_ms: None,
        }
    }
}

/// A dependency as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DependencyView {
    /// The program that depends.
    pub of: String,
    /// The program it depends on.
    pub on: String,
    /// What is waited for: `Started`, `Ready` or `Completed`.
    #[serde(default)]
    pub until: Until,
    /// How long that must have been so.
    pub delay_ms: Millis,
    /// Whether `of` goes down with it.
    pub propagate: bool,
    /// Whether it is satisfied.
    pub satisfied: bool,
}

/// A group as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    /// Its name.
    pub group: String,
    /// The level it is told to be at.
    pub level: String,
    /// `stopped`, `stopping`, `starting`, `up`, `degraded`, `passed`, `done` or `failed`.
    pub state: GroupWord,
    /// Its programs, in the order of the configuration.
    pub programs: Vec<String>,
    /// Why it is as it is, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// What is to be said of a group, as its programs make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupWord {
    /// Nothing of it runs, as it should be.
    Stopped,
    /// What does not belong to its level is being stopped.
    Stopping,
    /// What belongs to its level is being started.
    Starting,
    /// Everything that should run does.
    Up,
    /// Something that should run does not.
    Degraded,
    /// There were only tests to run, and all have passed.
    Passed,
    /// Everything has run to its end.
    Done,
    /// A program that holds back others has not ended well.
    Failed,
}

/// The state of all programs.
#[derive(Clone, Debug, Serialize)]
pub struct Dump<'a> {
    /// The version of the protocol.
    pub v: u32,
    /// The life of the daemon.
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

/// A state, looked at from one moment.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    state: &'a State,
    now: Instant,
}

impl<'a> View<'a> {
    /// How a state looks at a moment.
    pub fn at(state: &'a State, now: Instant) -> Self {
        Self { state, now }
    }

    /// One program.
    pub fn program(self, id: ProgramId) -> ProgramView<'a> {
        let program = &self.state.programs[id];
        let (reason, wait) = self.reason(id, program);
        let view = ProgramView::past(&self.state.graph.programs[id].name, program, self.now);
        ProgramView { reason, wait_ms: wait.map(|wait| wait.0), ..view }
    }

    /// All programs from the one at `from`, at most `limit` of them.
    pub fn dump(self, wall: WallTime, from: usize, limit: usize) -> Dump<'a> {
        let graph = &self.state.graph;
        // What is no longer configured is shown until it has stopped.
        let shown = |id: &ProgramId| !graph.programs[*id].retired || self.state.programs[*id].is_running();
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
        self.state.graph.edges_of(of).iter().map(move |edge| self.dependency(*edge))
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
        GroupView {
            group: graph.groups[id].name.to_string(),
            level: group.level.to_string(),
            state,
            programs: members.iter().map(|id| graph.programs[*id].name.to_string()).collect(),
            reason,
        }
    }

    fn group_word(self, group: &GroupState, members: &[ProgramId]) -> (GroupWord, String) {
        let program = |id: &ProgramId| (&self.state.graph.programs[*id], &self.state.programs[*id]);
        let all = || members.iter().map(program);
        let placed = || all().filter(|(_, program)| matches!(program.place, Place::In(_)));
        let says = |what: &str, policy: &Policy, program: &ProgramState| {
            let how = program.outcome.map(|outcome| format!(": {}", describe(outcome))).unwrap_or_default();
            format!("{} {what}{how}", policy.name)
        };
        if let Some(by) = &group.failed {
            let member = all().find(|(policy, _)| policy.name == *by);
            return (
                GroupWord::Failed,
                member.map_or_else(String::new, |(policy, program)| says("did not end well", policy, program)),
            );
        }
        if group.moves() || self.state.shutdown.is_some() {
            let going = all().find(|(_, program)| program.place == Place::Out && program.is_running());
            if let Some((policy, _)) = going {
                return (GroupWord::Stopping, format!("waiting for {} to stop", policy.name));
            }
            let held = placed().find(|(policy, program)| policy.mode.holds_back() && !program.is_completed());
            return (
                GroupWord::Starting,
                held.map_or_else(String::new, |(policy, _)| format!("waiting for {} to end", policy.name)),
            );
        }
        let down = |(policy, program): &(&Policy, &ProgramState)| match policy.mode {
            Mode::Respawn => program.phase != Phase::Up,
            Mode::Once => program.has_failed(),
            Mode::Wait | Mode::Test => !program.is_completed(),
        };
        if let Some((policy, program)) = placed().find(down) {
            return (GroupWord::Degraded, says("is not up", policy, program));
        }
        let unready = |(_, program): &(&Policy, &ProgramState)| program.is_steady() && !program.is_ready();
        if let Some((policy, _)) = placed().find(unready) {
            return (GroupWord::Starting, format!("waiting for {} to be ready", policy.name));
        }
        let runs = placed().any(|(_, program)| program.is_running());
        let tests = placed().all(|(policy, _)| policy.mode == Mode::Test);
        let word = match (runs, placed().next().is_some()) {
            (true, _) => GroupWord::Up,
            (false, _) if &*group.level == STOP => GroupWord::Stopped,
            (false, true) if tests => GroupWord::Passed,
            (false, true) => GroupWord::Done,
            (false, false) => GroupWord::Stopped,
        };
        (word, String::new())
    }

    fn dependency(self, id: crate::ids::EdgeId) -> DependencyView {
        let (edge, state) = self.state.edge(id);
        let name = |id: ProgramId| self.state.graph.programs[id].name.to_string();
        DependencyView {
            of: name(edge.of),
            on: name(edge.on),
            until: edge.until,
            delay_ms: edge.delay,
            propagate: edge.propagate,
            satisfied: state.satisfied.is_some(),
        }
    }

    /// Why a program is as it is, and for how much longer if that is known.
    fn reason(self, id: ProgramId, program: &ProgramState) -> (String, Option<Millis>) {
        let policy = &self.state.graph.programs[id];
        match program.phase {
            Phase::Starting => ("starting".to_owned(), None),
            Phase::Stopping if policy.retired => {
                let wait = program.deadline.map(|deadline| self.now.until(deadline));
                ("stopping: no longer configured".to_owned(), wait)
            }
            Phase::Stopping => {
                let why = program.leaving.map_or_else(String::new, |leaving| match program.ailment {
                    Some(ailment) if leaving.reason == StopReason::Unhealthy => format!(": {ailment}"),
                    Some(_) | None => format!(": {}", leaving.reason),
                });
                let wait = program.deadline.map(|deadline| self.now.until(deadline));
                (format!("stopping{why}"), wait)
            }
            Phase::Up if program.leaving.is_some() => ("to be stopped, its dependents go first".to_owned(), None),
            Phase::Up if !program.is_ready() => ("not ready yet".to_owned(), None),
            Phase::Up => (String::new(), None),
            Phase::Done if program.leaving.is_some() => ("to be undone, what builds on it goes first".to_owned(), None),
            Phase::Done => ("what it has done stands".to_owned(), None),
            Phase::Down if policy.retired => ("no longer configured".to_owned(), None),
            Phase::Down if program.operator_down => {
                let by = if policy.enabled || program.state_sequence > 1 {
                    "put down by an operator"
                } else {
                    "never asked up"
                };
                (by.to_owned(), None)
            }
            Phase::Down if program.place == Place::Out => (self.out(policy), None),
            Phase::Down if self.state.shutdown.is_some() => ("gaggled shuts down".to_owned(), None),
            Phase::Down if program.given_up => (given_up(program, policy), None),
            Phase::Down if !program.due => (finished(program, policy.mode), None),
            Phase::Down => self.waiting(id, program),
        }
    }

    /// Why its group does not let a program run, in words.
    fn out(self, policy: &Policy) -> String {
        let Some(id) = policy.group else { return String::new() };
        let (name, group) = (&self.state.graph.groups[id].name, &self.state.groups[id]);
        match (group.runs(policy), group.standing) {
            (false, _) => format!("group {name} is at level {}", group.level),
            (true, Standing::Failed) => format!("group {name} has failed"),
            (true, _) => format!("group {name} has not come to it yet"),
        }
    }

    /// Why what a dependency waits for will not come about by itself, in words to be added; nothing if it may.
    fn in_vain(self, dependency: &Dependency) -> String {
        let on = &self.state.programs[dependency.on];
        let once = self.state.graph.programs[dependency.on].mode != Mode::Respawn;
        if on.given_up {
            return ", which is given up: ask it up".to_owned();
        }
        if !once || on.phase != Phase::Down || on.due {
            return match dependency.until {
                Until::Completed => " to complete".to_owned(),
                Until::Ready if on.phase == Phase::Up => " to be ready".to_owned(),
                Until::Ready | Until::Started => String::new(),
            };
        }
        match (on.outcome, dependency.until) {
            (Some(outcome), Until::Completed) => format!(", which has failed ({}): ask it up", describe(outcome)),
            (Some(_), Until::Started | Until::Ready) => ", which has run once: ask it up".to_owned(),
            (None, _) => String::new(),
        }
    }

    /// What the start of a program waits for.
    fn waiting(self, id: ProgramId, program: &ProgramState) -> (String, Option<Millis>) {
        let unmet = self.state.graph.edges_of(id).iter().find(|edge| self.state.edges[**edge].satisfied.is_none());
        if let Some(edge) = unmet {
            let dependency = &self.state.graph.edges[*edge];
            let on = &self.state.graph.programs[dependency.on].name;
            return match self.state.opens_at(*edge) {
                Some(at) if dependency.delay.0 > 0 => {
                    let wait = self.now.until(at).min(dependency.delay);
                    let passed = dependency.delay.0 - wait.0;
                    (format!("waiting for {on}: {passed} ms of {} ms", dependency.delay.0), Some(wait))
                }
                _ => (format!("waiting for {on}{}", self.in_vain(dependency)), None),
            };
        }
        let last = last_run(program).map_or_else(String::new, |last| format!(": {last}"));
        match program.not_before {
            Some(at) if at > self.now => {
                let wait = self.now.until(at);
                (format!("starts again in {wait}{last}"), Some(wait))
            }
            _ => ("about to start".to_owned(), None),
        }
    }
}

/// Why a program that has ended too often is left down, in words.
fn given_up(program: &ProgramState, policy: &Policy) -> String {
    let last = last_run(program).unwrap_or_default();
    let often = policy.limit.map_or_else(String::new, |limit| {
        let starts = if limit.starts == 1 { "start" } else { "starts" };
        format!(" after {} {starts} within {}", limit.starts, limit.within)
    });
    format!("given up{often} ({last}): ask it up")
}

/// Why a program is left down, in words.
fn finished(program: &ProgramState, mode: Mode) -> String {
    match (last_run(program), mode) {
        (Some(last), Mode::Once | Mode::Wait | Mode::Test) => format!("ran once: {last}"),
        (Some(last), Mode::Respawn) => last,
        (None, _) => "not wanted".to_owned(),
    }
}

/// How the last run of a program ended, in words; nothing if there was none.
pub fn last_run(program: &ProgramState) -> Option<String> {
    let how = describe(program.outcome?);
    Some(program.ailment.map_or(how.clone(), |ailment| format!("{how}, because {ailment}")))
}

/// How a run ended, in words.
pub fn describe(outcome: Outcome) -> String {
    match outcome {
        Outcome::Exited(status) => status.to_string(),
        Outcome::SpawnFailed { stage, errno } => {
            let error = std::io::Error::from_raw_os_error(errno).to_string();
            let error = error.split(" (os error").next().unwrap_or_default().to_lowercase();
            format!("{stage} failed: {error}")
        }
    }
}
