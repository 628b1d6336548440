//! The reason for the state of a program or a group, in words.

use super::{GroupStatus, View};
use crate::{
    base::{
        ids::{InstanceId, ProgramId},
        time::Millis,
    },
    cluster::{External, RemoteRun},
    event::StopReason,
    graph::{Condition, Dependency, Mode, Policy, STOP},
    process::Outcome,
    state::{GroupState, LevelSwitch, Membership, Phase, ProgramState, Tenancy},
};

impl View<'_> {
    /// Which node runs a group that runs on one node at a time, in words; empty if this one does.
    pub(super) fn tenancy_words(tenancy: &Tenancy) -> String {
        match tenancy {
            Tenancy::Held { .. } => String::new(),
            Tenancy::Claiming { .. } => "this node wants to run it".to_owned(),
            Tenancy::Leaving { reason, .. } => format!("it is left to other nodes, because {reason}"),
            Tenancy::Away { holder: Some(node), .. } => format!("it runs on node {node}"),
            Tenancy::Away { holder: None, left: Some(left) } => {
                format!("it runs on no node; this one has left it, because {left}")
            }
            Tenancy::Away { holder: None, left: None } => "it runs on no node".to_owned(),
        }
    }

    /// Its status, and why it has that.
    pub(super) fn group_word(self, group: &GroupState, members: &[ProgramId]) -> (GroupStatus, String) {
        let program = |id: &ProgramId| (&self.state.graph.programs[*id], &self.state.programs[*id]);
        let all = || members.iter().map(program);
        let placed = || all().filter(|(_, program)| matches!(program.membership, Membership::Admitted(_)));
        let says = |what: &str, policy: &Policy, program: &ProgramState| {
            let how = program.outcome.map(|outcome| format!(": {}", describe(outcome))).unwrap_or_default();
            format!("{} {what}{how}", policy.name)
        };
        if let Some(by) = &group.failed_program {
            let member = all().find(|(policy, _)| policy.name == *by);
            return (
                GroupStatus::Failed,
                member.map_or_else(String::new, |(policy, program)| says("did not end well", policy, program)),
            );
        }
        if group.is_switching() || self.state.shutdown.is_some() {
            let going = all().find(|(_, program)| program.membership == Membership::Stopped && program.is_running());
            if let Some((policy, _)) = going {
                return (GroupStatus::Stopping, format!("waiting for {} to stop", policy.name));
            }
            let held = placed().find(|(policy, program)| policy.mode.is_gate() && !program.is_completed());
            return (
                GroupStatus::Starting,
                held.map_or_else(String::new, |(policy, _)| format!("waiting for {} to end", policy.name)),
            );
        }
        let down = |(policy, program): &(&Policy, &ProgramState)| match policy.mode {
            Mode::Respawn => program.phase != Phase::Up,
            Mode::Once => program.has_failed(),
            Mode::Wait | Mode::Test => !program.is_completed(),
        };
        if let Some((policy, program)) = placed().find(down) {
            return (GroupStatus::Degraded, says("is not up", policy, program));
        }
        let unready = |(_, program): &(&Policy, &ProgramState)| program.is_running_and_wanted() && !program.is_ready();
        if let Some((policy, _)) = placed().find(unready) {
            return (GroupStatus::Starting, format!("waiting for {} to be ready", policy.name));
        }
        let runs = placed().any(|(_, program)| program.is_running());
        let tests = placed().all(|(policy, _)| policy.mode == Mode::Test);
        let word = match (runs, placed().next().is_some()) {
            (true, _) => GroupStatus::Up,
            (false, _) if &*group.level == STOP => GroupStatus::Stopped,
            (false, true) if tests => GroupStatus::Passed,
            (false, true) => GroupStatus::Done,
            (false, false) => GroupStatus::Stopped,
        };
        (word, String::new())
    }

    /// The reason for the state of a program, and how much longer it lasts, if that is known.
    pub(super) fn reason(self, id: ProgramId, program: &ProgramState) -> (String, Option<Millis>) {
        let policy = &self.state.graph.programs[id];
        if let Some((external, remote)) = policy.external.as_ref().zip(program.remote.as_deref()) {
            return (elsewhere(external, remote, program), None);
        }
        match program.phase {
            Phase::Starting => ("starting".to_owned(), None),
            Phase::Stopping if policy.unconfigured => {
                let wait = program.kill_at().map(|deadline| self.now.until(deadline));
                ("stopping: no longer configured".to_owned(), wait)
            }
            Phase::Stopping => {
                let why = program.pending_stop.map_or_else(String::new, |leaving| match program.unhealthy_reason {
                    Some(unhealthy_reason) if leaving.reason == StopReason::Unhealthy => {
                        format!(": {unhealthy_reason}")
                    }
                    Some(_) | None => format!(": {}", leaving.reason),
                });
                let wait = program.kill_at().map(|deadline| self.now.until(deadline));
                (format!("stopping{why}"), wait)
            }
            Phase::Up if program.pending_stop.is_some() => ("to be stopped, its dependents go first".to_owned(), None),
            Phase::Up if !program.is_ready() => ("not ready yet".to_owned(), None),
            Phase::Up => (String::new(), None),
            Phase::ActiveExited if program.pending_stop.is_some() => {
                ("to be undone, what builds on it goes first".to_owned(), None)
            }
            Phase::ActiveExited => {
                let kept = match program.kept {
                    0 => String::new(),
                    1 => ", has left 1 process".to_owned(),
                    kept => format!(", has left {kept} processes"),
                };
                (format!("exited, still active{kept}"), None)
            }
            Phase::Down if policy.unconfigured => ("no longer configured".to_owned(), None),
            Phase::Down if program.operator_down => {
                let by = if policy.autostart || program.revision > 1 {
                    "stopped by an operator"
                } else {
                    "not started: autostart is false"
                };
                (by.to_owned(), None)
            }
            Phase::Down if program.membership == Membership::Stopped => (self.out(policy), None),
            Phase::Down if self.state.shutdown.is_some() => ("gaggled shuts down".to_owned(), None),
            Phase::Down if program.start_limit_hit => (start_limit_hit(program, policy), None),
            Phase::Down if !program.start_pending => (finished(program, policy.mode), None),
            Phase::Down => self.waiting(id, program),
        }
    }

    /// Why its group does not let a program run, in words.
    fn out(self, policy: &Policy) -> String {
        let Some(id) = policy.group else { return String::new() };
        let (name, group) = (&self.state.graph.groups[id].name, &self.state.groups[id]);
        match (group.runs(policy), group.level_switch) {
            (false, _) => {
                let why = group
                    .failed_program
                    .as_ref()
                    .map_or_else(String::new, |by| format!(", because {by} did not end well"));
                format!("group {name} is at level {}{why}", group.level)
            }
            (true, LevelSwitch::Failed) => format!("group {name} has failed"),
            (true, _) => format!("group {name} has not come to it yet"),
        }
    }

    /// Suffix that says what the dependency must do, or why only an operator can satisfy it; empty if it only has to
    /// start.
    fn in_vain(self, dependency: &Dependency) -> String {
        let on = &self.state.programs[dependency.dependency];
        let once = self.state.graph.programs[dependency.dependency].mode != Mode::Respawn;
        if on.start_limit_hit {
            return ", which has reached its start limit: start it".to_owned();
        }
        if !once || on.phase != Phase::Down || on.start_pending {
            return match dependency.condition {
                Condition::Completed => " to complete".to_owned(),
                Condition::Ready if on.phase == Phase::Up => " to be ready".to_owned(),
                Condition::Ready | Condition::Started => String::new(),
            };
        }
        match (on.outcome, dependency.condition) {
            (Some(outcome), Condition::Completed) => format!(", which has failed ({}): start it", describe(outcome)),
            (Some(_), Condition::Started | Condition::Ready) => ", which has run once: start it".to_owned(),
            (None, _) => String::new(),
        }
    }

    /// What the start of a program waits for.
    fn waiting(self, id: ProgramId, program: &ProgramState) -> (String, Option<Millis>) {
        let mut dependencies = self.state.graph.dependencies_of(id).iter();
        if let Some(unsatisfied) = dependencies.find(|id| self.state.dependencies[**id].satisfied.is_none()) {
            let dependency = &self.state.graph.dependencies[*unsatisfied];
            let on = &self.state.graph.programs[dependency.dependency].name;
            return match self.state.satisfied_at(*unsatisfied) {
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

/// What is known of a program of another node, in words.
fn elsewhere(external: &External, remote: &RemoteRun, program: &ProgramState) -> String {
    let place = external.place();
    let last = match program.phase {
        Phase::Up if program.is_ready() => format!("up {place}"),
        Phase::Up => format!("up {place}, not ready yet"),
        _ if program.is_completed() => format!("completed {place}"),
        _ if program.instance == InstanceId(0) => format!("not seen up {place} yet"),
        Phase::Down | Phase::Starting | Phase::Stopping | Phase::ActiveExited => match program.outcome {
            Some(outcome) => format!("down {place}: {}", describe(outcome)),
            None => format!("down {place}"),
        },
    };
    remote.unseen.map_or(last.clone(), |reason| format!("{last}; {reason}"))
}

/// Why a program that has ended too often is left down, in words.
fn start_limit_hit(program: &ProgramState, policy: &Policy) -> String {
    let last = last_run(program).unwrap_or_default();
    let often = policy.start_limit.map_or_else(String::new, |limit| {
        let starts = if limit.burst == 1 { "start" } else { "starts" };
        format!(" after {} {starts} within {}", limit.burst, limit.interval)
    });
    format!("start limit reached{often} ({last}): start it")
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
    Some(program.unhealthy_reason.map_or(how.clone(), |unhealthy_reason| format!("{how}, because {unhealthy_reason}")))
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
