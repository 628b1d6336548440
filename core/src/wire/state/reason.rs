//! Why a program, or a group, is as it is, in words.

use super::{GroupWord, View};
use crate::{
    event::StopReason,
    graph::{Dependency, Mode, Policy, STOP, Until},
    ids::ProgramId,
    state::{GroupState, Outcome, Phase, Place, ProgramState, Standing},
    time::Millis,
};

impl View<'_> {
    pub(super) fn group_word(self, group: &GroupState, members: &[ProgramId]) -> (GroupWord, String) {
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

    /// Why a program is as it is, and for how much longer if that is known.
    pub(super) fn reason(self, id: ProgramId, program: &ProgramState) -> (String, Option<Millis>) {
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
            Phase::Done => {
                let kept = match program.kept {
                    0 => String::new(),
                    1 => ", with 1 process".to_owned(),
                    kept => format!(", with {kept} processes"),
                };
                (format!("what it has done stands{kept}"), None)
            }
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
            (false, _) => {
                let why =
                    group.failed.as_ref().map_or_else(String::new, |by| format!(", because {by} did not end well"));
                format!("group {name} is at level {}{why}", group.level)
            }
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
