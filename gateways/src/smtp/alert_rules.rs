//! Which changes are reported by mail: the rules of the SMTP gate of the original gaggled.
//!
//! Every program has a tracker. It queues the changes of the program and reports, when it is due, what the program is
//! now: up, down, churning or operator disabled. That a program went down is reported at once; that it is up again only
//! when it has stayed up for a period; and a program that keeps changing is reported as churning, once.
//!
//! Two things differ from the original, which lost reports through them: an event that changes neither whether a
//! program is up nor whether an operator wants it down is not queued; and a program that was operator disabled and is
//! started again is reported as down only when it has been down for a period.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
};

use serde::{Deserialize, Serialize};

use gaggled_core::{
    base::ids::{EpochId, Seq},
    base::time::{Instant, Millis},
    protocol::ProgramView,
};

/// What was last reported of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ReportedStatus {
    /// Nothing.
    #[default]
    None,
    /// That it is up.
    Up,
    /// That it is down.
    Down,
    /// That it goes up and down.
    Churn,
    /// That an operator wants it down.
    OpDown,
}

impl fmt::Display for ReportedStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "unknown",
            Self::Up => "up",
            Self::Down => "down",
            Self::Churn => "churning",
            Self::OpDown => "operator disabled",
        })
    }
}

/// The part of a program's state that the tracker uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// Whether it is up.
    pub up: bool,
    /// Whether an operator wants it down.
    pub operator_down: bool,
    /// How it went down, in the original's words.
    pub exit_kind: String,
    /// Whether its dependencies are satisfied.
    pub satisfied: bool,
    /// Its process id, 0 if it has none.
    pub pid: i32,
    /// The epoch.
    pub epoch: EpochId,
    /// The event that changed it.
    pub seq: Seq,
    /// When that event was received.
    pub at: Instant,
}

impl Observation {
    /// The observation in a view that was received at `at`.
    pub fn new(view: &ProgramView<'_>, epoch: EpochId, at: Instant) -> Self {
        Self {
            up: view.up,
            operator_down: view.operator_down,
            exit_kind: view.exit_kind.to_owned(),
            satisfied: view.dependencies_satisfied,
            pid: view.pid,
            epoch,
            seq: view.last_seq,
            at,
        }
    }

    /// The program, and the observation in the `state` of the text of an event that was received at `at`. Programs of other
    /// nodes are reported by those.
    pub fn in_event(event: &str, at: Instant) -> Option<(String, Self)> {
        #[derive(Deserialize)]
        struct Heard {
            epoch: EpochId,
            program: String,
            state: State,
        }
        #[derive(Deserialize)]
        struct State {
            up: bool,
            operator_down: bool,
            exit_kind: String,
            dependencies_satisfied: bool,
            pid: i32,
            last_seq: Seq,
            seen: Option<bool>,
        }
        let Heard { epoch, program, state } = serde_json::from_str(event).ok()?;
        if state.seen.is_some() {
            return None;
        }
        let change = Self {
            up: state.up,
            operator_down: state.operator_down,
            exit_kind: state.exit_kind,
            satisfied: state.dependencies_satisfied,
            pid: state.pid,
            epoch,
            seq: state.last_seq,
            at,
        };
        Some((program, change))
    }

    fn same(&self, other: &Self) -> bool {
        self.up == other.up && self.operator_down == other.operator_down
    }
}

/// A change that is reported by mail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// The program.
    pub program: String,
    /// What it is now.
    pub is: ReportedStatus,
    /// What was reported of it before.
    pub was: ReportedStatus,
    /// The change that this is based on.
    pub basis: Observation,
    /// The last process id that is known.
    pub pid: i32,
}

impl Alert {
    /// The alert in the words of the original gaggled, its parts joined by `separator`.
    pub fn text(&self, separator: &str) -> String {
        let mut parts = vec![format!("process {} is {}", self.program, self.is)];
        if self.is != ReportedStatus::Up {
            let kind = Some(self.basis.exit_kind.as_str()).filter(|kind| !kind.is_empty() && *kind != "NONE");
            let why = if self.basis.operator_down {
                Some("shutdown by operator")
            } else {
                (!self.basis.satisfied).then_some("dependencies not satisfied")
            };
            let due: Vec<&str> = kind.into_iter().chain(why).collect();
            if !due.is_empty() {
                parts.push(format!("due to {}", due.join(separator)));
            }
        }
        if self.was != ReportedStatus::None {
            parts.push(format!("was {}", self.was));
        }
        if self.pid > 0 {
            let which = if self.is == ReportedStatus::Up { "current" } else { "last known" };
            parts.push(format!("{which} pid: {}", self.pid));
        }
        parts.join(separator)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Tracker {
    said: ReportedStatus,
    said_at: Instant,
    queue: VecDeque<Observation>,
    last: Option<Observation>,
    pid: i32,
    pending: bool,
}

/// The rules for all programs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AlertRules {
    period: Millis,
    batch: Millis,
    trackers: BTreeMap<String, Tracker>,
    pending: Vec<Alert>,
    last_mail: Instant,
}

impl AlertRules {
    /// New rules: `period` is how long a program must be unchanged, `batch` how long alerts are collected.
    pub fn new(period: Millis, batch: Millis, now: Instant) -> Self {
        Self { period, batch, trackers: BTreeMap::new(), pending: Vec::new(), last_mail: now }
    }

    /// Goes on from saved rules with these settings. The clock may have begun anew since, so later times become `now`.
    #[must_use]
    pub fn resume(self, period: Millis, batch: Millis, now: Instant) -> Self {
        let mut rules = Self { period, batch, last_mail: self.last_mail.min(now), ..self };
        for tracker in rules.trackers.values_mut() {
            tracker.said_at = tracker.said_at.min(now);
            tracker.queue.iter_mut().for_each(|change| change.at = change.at.min(now));
        }
        rules
    }

    /// Records a change of a program.
    pub fn observe(&mut self, program: &str, change: Observation) {
        let tracker = self.trackers.entry(program.to_owned()).or_insert_with(|| Tracker {
            said: ReportedStatus::None,
            said_at: change.at,
            queue: VecDeque::new(),
            last: None,
            pid: 0,
            pending: false,
        });
        if change.pid > 0 {
            tracker.pid = change.pid;
        }
        if tracker.last.as_ref().is_none_or(|last| !last.same(&change)) {
            tracker.last = Some(change.clone());
            tracker.queue.push_back(change);
        }
    }

    /// Forgets programs that no longer exist.
    pub fn retain(&mut self, known: impl Fn(&str) -> bool) {
        self.trackers.retain(|name, _| known(name));
    }

    /// The alerts that are due now, one mail for each list.
    pub fn due(&mut self, now: Instant) -> Vec<Vec<Alert>> {
        let mut said = Vec::new();
        for (program, tracker) in &mut self.trackers {
            while let Some(statement) = tracker.decide(program, self.period, now) {
                if statement.was == ReportedStatus::None && statement.is == ReportedStatus::Up {
                    continue;
                }
                tracker.pending = self.batch.0 > 0;
                said.push(statement);
            }
        }
        if self.batch.0 == 0 {
            return said.into_iter().map(|statement| vec![statement]).collect();
        }
        self.pending.append(&mut said);
        if self.pending.is_empty() || now < self.last_mail + self.batch {
            return Vec::new();
        }
        self.last_mail = now;
        for tracker in self.trackers.values_mut() {
            tracker.pending = false;
        }
        vec![std::mem::take(&mut self.pending)]
    }

    /// When the next alert may be due, if nothing more happens.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let trackers = self.trackers.values().filter_map(|tracker| tracker.next_deadline(self.period, now));
        let batch = (!self.pending.is_empty()).then(|| self.last_mail + self.batch);
        trackers.chain(batch).min()
    }

    /// Whether every program was last reported as up.
    pub fn all_ok(&self) -> bool {
        self.trackers.values().all(|tracker| tracker.said == ReportedStatus::Up)
    }
}

impl Tracker {
    /// The first rule that fits (the original's numbers).
    fn decide(&mut self, program: &str, period: Millis, now: Instant) -> Option<Alert> {
        let newest = self.queue.back()?.clone();
        if self.pending || self.said_at + period > now {
            return None;
        }
        let settled = newest.at + period <= now;
        let oldest = self.queue.front()?.clone();
        if self.said != ReportedStatus::OpDown && !newest.up && newest.operator_down {
            self.queue.clear();
            return Some(self.say(program, ReportedStatus::OpDown, newest)); // 1
        }
        if self.said == ReportedStatus::None {
            self.queue.pop_front();
            let said = if oldest.up { ReportedStatus::Up } else { ReportedStatus::Down };
            return Some(self.say(program, said, oldest)); // 2
        }
        if self.said != ReportedStatus::Churn && self.churns() {
            self.queue = VecDeque::from([newest.clone()]);
            return Some(self.say(program, ReportedStatus::Churn, newest)); // 3
        }
        match self.said {
            ReportedStatus::Up if !oldest.up => {
                self.queue.pop_front();
                Some(self.say(program, ReportedStatus::Down, oldest)) // 4
            }
            ReportedStatus::Up => {
                // Changes that were reported already are skipped.
                while self.queue.front().is_some_and(|change| change.up) {
                    self.queue.pop_front();
                }
                self.decide(program, period, now)
            }
            ReportedStatus::Down | ReportedStatus::OpDown if newest.up && settled => {
                self.queue.clear();
                Some(self.say(program, ReportedStatus::Up, newest)) // 5
            }
            ReportedStatus::OpDown if !newest.up && !newest.operator_down && settled => {
                self.queue.clear();
                Some(self.say(program, ReportedStatus::Down, newest)) // 6
            }
            ReportedStatus::Churn if settled => {
                self.queue.clear();
                let said = if newest.up { ReportedStatus::Up } else { ReportedStatus::Down };
                Some(self.say(program, said, newest)) // 7
            }
            ReportedStatus::Churn => {
                self.queue = VecDeque::from([newest]);
                None
            }
            ReportedStatus::None | ReportedStatus::Down | ReportedStatus::OpDown => None, // 8
        }
    }

    fn next_deadline(&self, period: Millis, now: Instant) -> Option<Instant> {
        let newest = self.queue.back().filter(|_| !self.pending)?;
        let open = self.said_at + period;
        let settled = newest.at + period;
        [open, settled.max(open)].into_iter().find(|moment| *moment > now)
    }

    /// Whether more than two changes are queued, and those before the last include both up and down.
    fn churns(&self) -> bool {
        let before = self.queue.len().saturating_sub(1);
        let ups = self.queue.iter().take(before).filter(|change| change.up).count();
        self.queue.len() > 2 && ups > 0 && ups < before
    }

    fn say(&mut self, program: &str, is: ReportedStatus, basis: Observation) -> Alert {
        let was = std::mem::replace(&mut self.said, is);
        self.said_at = basis.at;
        Alert { program: program.to_owned(), is, was, basis, pid: self.pid }
    }
}

/// The subject of a mail that collects alerts, after the prefix.
pub fn batch_subject(statements: &[Alert], all_ok: bool) -> String {
    let worse = |s: &Alert| {
        matches!(
            (s.was, s.is),
            (_, ReportedStatus::Churn)
                | (ReportedStatus::None | ReportedStatus::Up | ReportedStatus::OpDown, ReportedStatus::Down)
        )
    };
    let better =
        |s: &Alert| matches!((s.was, s.is), (_, ReportedStatus::Up) | (ReportedStatus::Churn, ReportedStatus::Down));
    let kind = match (statements.iter().any(worse), statements.iter().any(better)) {
        (true, true) => "mixed changes",
        (true, false) => "degradation",
        (false, true) => "improvement",
        (false, false) if statements.iter().any(|s| s.is == ReportedStatus::OpDown) => "neutral changes",
        (false, false) => "unknown state changes",
    };
    format!("{kind}{}", if all_ok { " [all ok]" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Millis = Millis(10_000);

    fn at(seconds: f64) -> Instant {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small numbers of a test")]
        Instant::from_micros((seconds * 1e6) as u64)
    }

    /// Runs `seconds:state` words (`u` up, `d` down, `o` operator down) and returns `seconds:status` words.
    fn told(script: &str, until: f64) -> String {
        let mut alert_rules = AlertRules::new(PERIOD, Millis(0), at(0.0));
        let (mut heard, mut now): (Vec<String>, Instant) = (Vec::new(), at(0.0));
        let mut say = |alert_rules: &mut AlertRules, now: Instant| {
            for statement in alert_rules.due(now).concat() {
                heard.push(format!("{}:{:?}", now.as_millis() / 1000, statement.is));
            }
        };
        let mut steps: Vec<(Instant, &str)> = script
            .split_whitespace()
            .map(|word| word.split_once(':').expect("seconds:state"))
            .map(|(seconds, state)| (at(seconds.parse().expect("a number")), state))
            .collect();
        steps.push((at(until), "end"));
        for (moment, state) in steps {
            while let Some(deadline) = alert_rules.next_deadline(now).filter(|deadline| *deadline < moment) {
                now = deadline;
                say(&mut alert_rules, now);
            }
            now = moment;
            if state != "end" {
                let (up, operator_down) = (state == "u", state == "o");
                let exit_kind = if up { "NONE" } else { "KILL" }.to_owned();
                let change = Observation {
                    up,
                    operator_down,
                    exit_kind,
                    satisfied: true,
                    pid: 7,
                    epoch: EpochId(1),
                    seq: Seq(1),
                    at: moment,
                };
                alert_rules.observe("a", change);
            }
            say(&mut alert_rules, moment);
        }
        heard.join(" ")
    }

    #[test]
    fn statements_follow_the_original_rules() {
        let table = [
            ("0:u", ""),
            ("0:d", "10:Down"),
            ("0:o", "10:OpDown"),
            ("0:u 30:d", "30:Down"),
            ("0:u 30:d 30.1:u", "30:Down 40:Up"),
            ("0:u 30:d 31:u 32:d 33:u", "30:Down 40:Churn 43:Up"),
            ("0:u 30:d 31:u 32:d 33:u 45:d", "30:Down 40:Churn 43:Up 45:Down"),
            ("0:u 30:o", "30:OpDown"),
            ("0:u 30:o 60:d 60.1:u", "30:OpDown 70:Up"),
            ("0:u 30:o 60:d", "30:OpDown 70:Down"),
            ("0:u 30:u 40:d", "40:Down"),
            ("0:u 30:d 31:u 45:o 46:u 47:d", "30:Down 41:Up 45:OpDown 57:Down"),
            ("0:u 30:u 40:u 50:d 51:u", "50:Down 61:Up"),
        ];
        for (script, expected) in table {
            assert_eq!(told(script, 200.0), expected, "{script}");
        }
    }

    #[test]
    fn the_words_are_those_of_the_original() {
        let basis = Observation {
            up: false,
            operator_down: false,
            exit_kind: "KILL".to_owned(),
            satisfied: false,
            pid: 0,
            epoch: EpochId(1),
            seq: Seq(9),
            at: at(0.0),
        };
        let mut statement =
            Alert { program: "b".into(), is: ReportedStatus::Down, was: ReportedStatus::Up, basis, pid: 28913 };
        assert_eq!(
            statement.text(", "),
            "process b is down, due to KILL, dependencies not satisfied, was up, last known pid: 28913"
        );
        statement.is = ReportedStatus::Up;
        statement.was = ReportedStatus::Down;
        assert_eq!(statement.text(", "), "process b is up, was down, current pid: 28913");
        statement.is = ReportedStatus::OpDown;
        statement.was = ReportedStatus::None;
        statement.pid = 0;
        statement.basis.operator_down = true;
        statement.basis.exit_kind.clear();
        assert_eq!(statement.text(", "), "process b is operator disabled, due to shutdown by operator");
    }

    #[test]
    fn a_batch_is_one_mail_and_its_subject_sums_it_up() {
        let mut alert_rules = AlertRules::new(Millis(1), Millis(60_000), at(0.0));
        let change = |up| Observation {
            up,
            operator_down: false,
            exit_kind: "EXIT".to_owned(),
            satisfied: true,
            pid: 0,
            epoch: EpochId(1),
            seq: Seq(1),
            at: at(1.0),
        };
        alert_rules.observe("a", change(false));
        alert_rules.observe("b", change(true));
        assert!(alert_rules.due(at(2.0)).is_empty());
        assert_eq!(alert_rules.next_deadline(at(2.0)), Some(at(60.0)));
        let mails = alert_rules.due(at(60.0));
        assert_eq!(mails.len(), 1);
        assert_eq!(batch_subject(&mails[0], alert_rules.all_ok()), "degradation");
    }
}
