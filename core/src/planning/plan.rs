//! What another configuration would change: which programs start, stop, restart and stay, and why.
//!
//! The plan that is shown is the one that is carried out: [`Plan::wishes`] turns it into events.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    base::ids::{EpochId, GroupId, Seq},
    config::{CLUSTERGATE, Config, OrderedMap, ProgramConfig, SMTPGATE, Settings},
    event::{Cause, Event, ProgramEvent},
    graph::{Graph, Group, STOP},
    state::{Membership, Phase, ProgramState, State},
};

/// How a program changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It is new, or is to run now.
    Start,
    /// It is no longer configured, or is not to run any more.
    Stop,
    /// It has to be restarted for its changed settings to take effect.
    Restart,
    /// It is new or different, and is neither started, stopped nor restarted.
    ApplyLive,
    /// It stays as it is.
    Unchanged,
}

/// How one program changes, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its name.
    pub program: String,
    /// How it changes.
    pub change: Change,
    /// Why, in words; empty if it stays.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// How every program changes, in the order of the new configuration; removed programs come last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// One step for each program.
    pub steps: Vec<Step>,
    /// What else has changed, by the names of the settings: `gaggled.killwait`, `nodes`.
    #[serde(default)]
    pub settings: Vec<String>,
}

impl Plan {
    /// Compares two configurations, the first of which has led to this state.
    pub fn new(old: &Config, new: &Config, state: &State) -> Self {
        let before: BTreeMap<&str, &ProgramConfig> = old.enabled_programs().collect();
        let after: BTreeSet<&str> = new.enabled_programs().map(|(name, _)| name).collect();
        let ids = state.graph.names();
        let known = |name: &str| ids.get(name).map(|id| &state.programs[*id]);
        let runs = |name: &str| known(name).is_some_and(ProgramState::is_running);
        let is_out = |name: &str| known(name).is_some_and(|program| program.membership == Membership::Stopped);
        let down = |name: &str| known(name).is_some_and(|program| program.operator_down);
        let common = common_changes(old, new);
        let merge = old.gaggled.prefix_output != new.gaggled.prefix_output;
        let levels = levels_after(new, state);
        let mut steps = Vec::new();
        for (name, program) in new.enabled_programs() {
            let level = program.group.as_deref().and_then(|group| levels.get(group));
            let out = level.filter(|at| !at.runs(program));
            let (change, reason) = match before.get(name) {
                None => {
                    let new = if old.programs.get(name).is_some() { "it is enabled now" } else { "it is new" };
                    match out {
                        Some(at) => (Change::ApplyLive, format!("{new}, and its group is at level {}", at.level)),
                        None if program.autostart => (Change::Start, new.to_owned()),
                        None => (Change::ApplyLive, format!("{new}, and starts when an operator starts it")),
                    }
                }
                Some(_) if name == SMTPGATE && gate_changed(old, new) => {
                    let change = if runs(name) { Change::Restart } else { Change::ApplyLive };
                    (change, "gaggled.smtpgate changed".to_owned())
                }
                Some(_) if name == CLUSTERGATE && old.gaggled.cluster != new.gaggled.cluster => {
                    let change = if runs(name) { Change::Restart } else { Change::ApplyLive };
                    (change, "gaggled.cluster changed".to_owned())
                }
                Some(_) if out.is_some() && runs(name) => {
                    (Change::Stop, format!("its group is at level {}", out.map_or("", |at| &at.level)))
                }
                Some(_) if level.is_some() && out.is_none() && is_out(name) && program.autostart && !down(name) => {
                    (Change::Start, format!("its group is at level {}", level.map_or("", |at| &at.level)))
                }
                Some(known) => compare(known, program, (&common, merge), runs(name), down(name)),
            };
            steps.push(Step { program: name.to_owned(), change, reason });
        }
        for (name, _) in old.enabled_programs().filter(|(name, _)| !after.contains(name)) {
            let change = if runs(name) { Change::Stop } else { Change::ApplyLive };
            let is_disabled = new.programs.get(name).is_some();
            let reason = if is_disabled { "it is disabled now" } else { "it is no longer configured" };
            steps.push(Step { program: name.to_owned(), change, reason: reason.to_owned() });
        }
        Self { steps, settings: changed_settings(old, new) }
    }

    /// Compares two configurations for a node of which only that is known that it has the first one: as if all its programs ran.
    pub fn if_all_run(old: &Config, new: &Config) -> Self {
        Self::new(old, new, &all_running(old.graph()))
    }

    /// The events that carry out the plan, given the state that has been carried over to the new configuration. A new
    /// program starts without one.
    pub fn wishes(&self, state: &State, cause: &Cause) -> Vec<(Event, Cause)> {
        let ids = state.graph.names();
        let wish = |step: &Step| {
            let id = *ids.get(step.program.as_str())?;
            let known = state.programs[id].revision > 1 || state.programs[id].is_running();
            let moves = state.graph.programs[id].group.is_some();
            let event = match step.change {
                // Its group starts and stops it.
                Change::Start | Change::Stop if moves => return None,
                Change::Start if known || state.programs[id].operator_down => ProgramEvent::StartRequested,
                Change::Stop => ProgramEvent::StopRequested,
                Change::Restart => ProgramEvent::RestartRequested,
                // Failures with the old settings do not count for the new ones.
                Change::ApplyLive if is_penalised(&state.programs[id]) => ProgramEvent::StartRequested,
                Change::Start | Change::ApplyLive | Change::Unchanged => return None,
            };
            Some((Event::Program(id, event), cause.clone()))
        };
        self.steps.iter().filter_map(wish).collect()
    }
}

/// The state in which every program of a graph runs.
fn all_running(graph: Graph) -> State {
    let mut state = State::new(Arc::new(graph), EpochId(1));
    for id in state.graph.clone().programs.ids() {
        state.programs[id].phase = Phase::Up;
    }
    state
}

/// Whether a program is to run, and only its backoff or its start limit keeps it down.
fn is_penalised(program: &ProgramState) -> bool {
    let waits = program.start_limit_hit || program.start_pending && program.not_before.is_some();
    program.phase == Phase::Down && !program.operator_down && program.membership != Membership::Stopped && waits
}

/// The level of each group with another configuration: the present one, unless its default level has changed or the
/// present one does not exist any more.
fn levels_after(new: &Config, state: &State) -> BTreeMap<String, GroupLevel> {
    let graph = new.graph();
    let level = |(id, group): (GroupId, &Group)| {
        let old =
            state.graph.group(&group.name).filter(|old| state.graph.groups[*old].default_level == group.default_level);
        let kept = old.map(|old| &state.groups[old]).filter(|old| graph.has_level(id, &old.level));
        // A group that runs on one node at a time is stopped until this node holds it.
        let first = if group.tenancy.is_some() { STOP } else { &*group.default_level };
        let level = kept.map_or(first, |kept| &*kept.level).to_string();
        (
            group.name.to_string(),
            GroupLevel { level, is_requested: kept.is_some_and(|kept| kept.requested_by > Seq(0)) },
        )
    };
    graph.groups.iter().map(level).collect()
}

/// The level of a group.
struct GroupLevel {
    level: String,
    /// Whether an operator has requested it.
    is_requested: bool,
}

impl GroupLevel {
    fn runs(&self, program: &ProgramConfig) -> bool {
        let names = program.levels.contains(&self.level);
        if self.level == STOP { names && self.is_requested } else { names || program.levels.is_empty() }
    }
}

/// The changed settings that affect the environment of every program.
fn common_changes(old: &Config, new: &Config) -> Vec<&'static str> {
    let (old, new) = (&old.gaggled, &new.gaggled);
    let mut changed = Vec::new();
    if old.env != new.env {
        changed.push("gaggled.env");
    }
    if old.path != new.path {
        changed.push("gaggled.path");
    }
    if old.cgroup != new.cgroup {
        changed.push("gaggled.cgroup");
    }
    if old.eventurl != new.eventurl {
        changed.push("gaggled.eventurl");
    }
    if old.controlurl != new.controlurl {
        changed.push("gaggled.controlurl");
    }
    changed
}

/// Whether the `smtpgate` that gaggled runs itself has to read its settings again.
fn gate_changed(old: &Config, new: &Config) -> bool {
    new.gaggled.smtpgate.as_ref().is_some_and(|gate| gate.auto) && old.gaggled.smtpgate != new.gaggled.smtpgate
}

/// How a program changes that both configurations have; `runs`: it has a process; `down`: an operator wants it down.
fn compare(
    old: &ProgramConfig,
    new: &ProgramConfig,
    (common, merge): (&[&'static str], bool),
    runs: bool,
    down: bool,
) -> (Change, String) {
    if !old.autostart && new.autostart && down && !runs {
        return (Change::Start, "it starts by itself now".to_owned());
    }
    let changed = changed_fields(old, new);
    let (rules, launch): (Vec<&str>, Vec<&str>) =
        changed.iter().map(String::as_str).partition(|field| LIVE_FIELDS.contains(field));
    // Where its output goes is decided when it is started.
    let merged = if merge && new.log.is_none() { &["gaggled.prefix_output"][..] } else { &[] };
    let launch = [common, merged, &launch].concat();
    if !launch.is_empty() {
        // A program that an operator has stopped is not started by that.
        let change = if runs && !down { Change::Restart } else { Change::ApplyLive };
        return (change, format!("{} changed", launch.join(", ")));
    }
    if rules.is_empty() {
        return (Change::Unchanged, String::new());
    }
    (Change::ApplyLive, format!("{} changed, which needs no restart", rules.join(", ")))
}

/// The fields that take effect while a program runs; all others take effect when it is started.
const LIVE_FIELDS: [&str; 14] = [
    "retry",
    "mode",
    "group",
    "levels",
    "success_exit_codes",
    "stop_command",
    "stop_signal",
    "killwait",
    "backoff",
    "start_limit",
    "essential",
    "depends",
    "autostart",
    "export",
];

/// The fields that have changed, by their names in the file.
fn changed_fields(old: &ProgramConfig, new: &ProgramConfig) -> Vec<String> {
    let fields = |program: &ProgramConfig| {
        let plain = ProgramConfig {
            // The mode can be set in two ways.
            mode: Some(program.effective_mode()),
            respawn: None,
            ..program.clone()
        };
        fields_of(&plain)
    };
    different(&fields(old), &fields(new))
}

/// The settings that differ, besides those of programs.
fn changed_settings(old: &Config, new: &Config) -> Vec<String> {
    let rest = |config: &Config| {
        fields_of(&Config { gaggled: Settings::default(), programs: OrderedMap::default(), ..config.clone() })
    };
    let own = different(&fields_of(&old.gaggled), &fields_of(&new.gaggled));
    let own = own.into_iter().map(|field| format!("gaggled.{field}"));
    own.chain(different(&rest(old), &rest(new))).collect()
}

fn fields_of(value: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

fn different(old: &Map<String, Value>, new: &Map<String, Value>) -> Vec<String> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    names.into_iter().filter(|name| old.get(*name) != new.get(*name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::ids::{DenseId, ProgramId, Seq},
        state::Phase,
    };

    fn config(text: &str) -> Config {
        Config::parse(text).expect("it is correct").config
    }

    #[test]
    fn a_plan_tells_what_changes_and_touches_nothing_else() {
        let old = config(
            r#"(programs: {
                "same": (command: "a"), "moved": (command: "a", wd: "/"), "slower": (command: "a"),
                "gone": (command: "a"), "off": (command: "a"), "web": (command: "a"),
            })"#,
        );
        let new = config(
            r#"(programs: {
                "web": (command: "a", depends: {"same": ()}), "same": (command: "a"), "moved": (command: "a", wd: "/tmp"),
                "slower": (command: "a", killwait: "1m"), "off": (command: "a", enabled: false), "new": (command: "a"),
                "spare": (command: "a", autostart: false),
            })"#,
        );
        let plan = Plan::new(&old, &new, &all_running(old.graph()));
        let told: Vec<String> =
            plan.steps.iter().map(|step| format!("{} {:?} {}", step.program, step.change, step.reason)).collect();
        assert_eq!(
            told,
            [
                "web ApplyLive depends changed, which needs no restart",
                "same Unchanged ",
                "moved Restart wd changed",
                "slower ApplyLive killwait changed, which needs no restart",
                "new Start it is new",
                "spare ApplyLive it is new, and starts when an operator starts it",
                "gone Stop it is no longer configured",
                "off Stop it is disabled now",
            ]
        );
    }

    #[test]
    fn a_plan_knows_at_which_level_a_group_is() {
        let old = config(
            r#"(groups: {"g": (level: "1")}, programs: {
                "stays": (group: "g", levels: ["1", "2"], command: "a"), "goes": (group: "g", levels: ["1"], command: "a"),
                "comes": (group: "g", levels: ["2"], command: "a"),
            })"#,
        );
        let new = config(
            r#"(groups: {"g": (level: "2")}, programs: {
                "stays": (group: "g", levels: ["1", "2"], command: "a"), "goes": (group: "g", levels: ["1"], command: "a"),
                "comes": (group: "g", levels: ["2"], command: "a"), "new": (group: "g", levels: ["1"], command: "a"),
            })"#,
        );
        let mut state = all_running(old.graph());
        for (id, place) in
            [(0, Membership::Admitted(Seq(1))), (1, Membership::Admitted(Seq(1))), (2, Membership::Stopped)]
        {
            state.programs[ProgramId::at(id)].membership = place;
        }
        state.programs[ProgramId::at(2)].phase = Phase::Down;
        let plan = Plan::new(&old, &new, &state);
        let told: Vec<String> =
            plan.steps.iter().map(|step| format!("{} {:?} {}", step.program, step.change, step.reason)).collect();
        assert_eq!(
            told,
            [
                "stays Unchanged ",
                "goes Stop its group is at level 2",
                "comes Start its group is at level 2",
                "new ApplyLive it is new, and its group is at level 2",
            ]
        );
        assert!(plan.wishes(&state, &Cause::DaemonStart).is_empty(), "the group sees to all of it");
    }

    #[test]
    fn what_every_program_gets_concerns_every_program() {
        let old = config(r#"(programs: {"a": (command: "x"), "b": (command: "x")})"#);
        let new = config(r#"(gaggled: (env: {"TZ": "UTC"}), programs: {"a": (command: "x"), "b": (command: "x")})"#);
        let plan = Plan::new(&old, &new, &all_running(old.graph()));
        assert!(plan.steps.iter().all(|step| step.change == Change::Restart && step.reason == "gaggled.env changed"));
    }
}
