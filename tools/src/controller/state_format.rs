//! The state of all programs for people: a table, or a tree of dependencies.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use gaggled_core::{
    base::time::Millis,
    graph::Condition,
    planning::plan::{Change, Plan},
    protocol::{DependencyView, GroupStatus, GroupView},
    state::Phase,
};
use serde::Deserialize;
use termtree::Tree;

/// The parts of a dump that are shown.
#[derive(Clone, Debug, Deserialize)]
pub struct Dump {
    /// The programs, in the order of the configuration.
    pub programs: Vec<Row>,
    /// The dependencies.
    pub dependencies: Vec<DependencyView>,
    /// The groups.
    #[serde(default)]
    pub groups: Vec<GroupView>,
    /// Where the next page begins.
    #[serde(default)]
    pub next: Option<usize>,
}

/// The parts of a program's state that are shown.
#[derive(Clone, Debug, Deserialize)]
pub struct Row {
    /// Its name.
    pub program: String,
    /// Its phase.
    pub phase: Phase,
    /// Its process id.
    pub pid: i32,
    /// For how long it has been up.
    pub uptime_ms: u64,
    /// How often it was started again.
    pub restarts: u64,
    /// Whether an operator wants it down.
    pub operator_down: bool,
    /// The reason for its state.
    pub reason: String,
}

impl Row {
    fn state(&self) -> &'static str {
        match self.phase {
            Phase::Up => "up",
            Phase::ActiveExited => "done",
            Phase::Starting => "starting",
            Phase::Stopping => "stopping",
            Phase::Down if self.operator_down => "stopped",
            Phase::Down => "down",
        }
    }

    fn colour(&self) -> Color {
        match self.phase {
            Phase::Up | Phase::ActiveExited => Color::Green,
            Phase::Starting | Phase::Stopping => Color::Yellow,
            Phase::Down if self.operator_down => Color::Blue,
            Phase::Down => Color::Red,
        }
    }

    /// The colour of its state, as Graphviz names it.
    pub fn colour_name(&self) -> &'static str {
        match self.phase {
            Phase::Up | Phase::ActiveExited => "palegreen",
            Phase::Starting | Phase::Stopping => "khaki",
            Phase::Down if self.operator_down => "lightblue",
            Phase::Down => "lightcoral",
        }
    }

    fn uptime(&self) -> String {
        if self.phase == Phase::Up { Millis(self.uptime_ms).to_string() } else { String::new() }
    }
}

/// The programs as a table.
pub fn table(dump: &Dump, coloured: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    let heading = |text: &str| if coloured { Cell::new(text).add_attribute(Attribute::Bold) } else { Cell::new(text) };
    table.set_header(["PROGRAM", "STATE", "PID", "UPTIME", "RESTARTS", "REASON"].map(heading));
    for row in &dump.programs {
        let state = Cell::new(row.state());
        table.add_row([
            Cell::new(&row.program),
            if coloured { state.fg(row.colour()) } else { state },
            Cell::new(if row.pid > 0 { row.pid.to_string() } else { String::new() }),
            Cell::new(row.uptime()),
            Cell::new(row.restarts),
            Cell::new(&row.reason),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// The groups, one line for each.
pub fn groups(groups: &[GroupView]) -> String {
    let width = groups.iter().map(|group| group.group.len()).max().unwrap_or(0);
    let line = |group: &GroupView| {
        let reason = if group.reason.is_empty() { String::new() } else { format!(": {}", group.reason) };
        format!("group {:<width$}  at {}, {}{reason}", group.group, group.level, word(group.state))
    };
    groups.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn word(state: GroupStatus) -> &'static str {
    match state {
        GroupStatus::Stopped => "stopped",
        GroupStatus::Stopping => "stopping",
        GroupStatus::Starting => "starting",
        GroupStatus::Up => "up",
        GroupStatus::Degraded => "degraded",
        GroupStatus::Passed => "passed",
        GroupStatus::Done => "done",
        GroupStatus::Failed => "failed",
    }
}

/// What another configuration changes, one line for each program that it touches.
pub fn plan(plan: &Plan) -> String {
    let touched = plan.steps.iter().filter(|step| step.change != Change::Unchanged);
    let itself = if plan.settings.is_empty() { "" } else { "gaggled" };
    let width = plan.steps.iter().map(|step| step.program.len()).chain([itself.len()]).max().unwrap_or(0);
    let word = |change: Change| match change {
        Change::Start => "start",
        Change::Stop => "stop",
        Change::Restart => "restart",
        Change::ApplyLive => "update",
        Change::Unchanged => "keep",
    };
    let mut lines: Vec<String> =
        touched.map(|step| format!("{:<8} {:<width$}  {}", word(step.change), step.program, step.reason)).collect();
    let kept = plan.steps.len() - lines.len();
    if !plan.settings.is_empty() {
        lines.push(format!("{:<8} {:<width$}  {} changed", "update", itself, plan.settings.join(", ")));
    }
    if !lines.is_empty() {
        lines.push(String::new());
    }
    lines.push(match (lines.is_empty(), kept) {
        (true, _) => "nothing changes".to_owned(),
        (false, 1) => "1 program stays as it is".to_owned(),
        (false, kept) => format!("{kept} programs stay as they are"),
    });
    lines.join("\n")
}

/// How many programs are in which state, in one line.
pub fn summary(dump: &Dump) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for row in &dump.programs {
        *counts.entry(row.state()).or_default() += 1;
    }
    let parts = ["up", "done", "starting", "stopping", "down", "stopped"];
    let parts: Vec<String> =
        parts.into_iter().filter_map(|state| counts.get(state).map(|count| format!("{count} {state}"))).collect();
    if parts.is_empty() { "no programs".to_owned() } else { parts.join(", ") }
}

/// The programs as a tree, with dependents below their dependencies. A program with several dependencies is shown below
/// each of them, but its own dependents only once.
pub fn tree(dump: &Dump, has_state: bool) -> String {
    let rows: BTreeMap<&str, &Row> = dump.programs.iter().map(|row| (row.program.as_str(), row)).collect();
    let mut dependents: BTreeMap<&str, Vec<&DependencyView>> = BTreeMap::new();
    let mut depends: BTreeSet<&str> = BTreeSet::new();
    for dependency in dump.dependencies.iter().filter(|dependency| rows.contains_key(&*dependency.dependency)) {
        dependents.entry(&dependency.dependency).or_default().push(dependency);
        depends.insert(&dependency.dependent);
    }
    let roots = dump.programs.iter().filter(|row| !depends.contains(row.program.as_str()));
    let later: VecDeque<&Row> = roots.collect();
    let mut drawing = TreeBuilder { rows: &rows, dependents: &dependents, has_state, drawn: BTreeSet::new(), later };
    let mut drawn = String::new();
    while let Some(row) = drawing.later.pop_front() {
        drawn += &drawing.branch(row, None, 0).to_string();
    }
    drawn.trim_end().to_owned()
}

/// How deep a tree is drawn; deeper programs begin a tree of their own.
const DEEPEST: usize = 24;

/// A tree that is being drawn.
struct TreeBuilder<'a> {
    rows: &'a BTreeMap<&'a str, &'a Row>,
    dependents: &'a BTreeMap<&'a str, Vec<&'a DependencyView>>,
    has_state: bool,
    drawn: BTreeSet<&'a str>,
    /// The programs that begin a tree of their own.
    later: VecDeque<&'a Row>,
}

impl<'a> TreeBuilder<'a> {
    fn branch(&mut self, row: &'a Row, dependency: Option<&DependencyView>, depth: usize) -> Tree<String> {
        let mut label = row.program.clone();
        if self.has_state {
            label = format!("{label} [{}]", row.state());
        }
        let rules = dependency.map(rules).unwrap_or_default();
        if !rules.is_empty() {
            label = format!("{label} ({})", rules.join(", "));
        }
        if self.has_state && !row.reason.is_empty() {
            label = format!("{label} {}", row.reason);
        }
        let below = self.dependents.get(row.program.as_str()).map_or(&[][..], Vec::as_slice);
        if !below.is_empty() && self.drawn.contains(row.program.as_str()) {
            return Tree::new(format!("{label} ..."));
        }
        if !below.is_empty() && depth == DEEPEST {
            self.later.push_back(row);
            return Tree::new(format!("{label} (goes on below)"));
        }
        self.drawn.insert(&row.program);
        let branch = |dependency: &'a DependencyView| Some((*self.rows.get(&*dependency.dependent)?, dependency));
        let dependencies: Vec<_> = below.iter().filter_map(|dependency| branch(dependency)).collect();
        let below: Vec<_> =
            dependencies.into_iter().map(|(row, dependency)| self.branch(row, Some(dependency), depth + 1)).collect();
        Tree::new(label).with_leaves(below)
    }
}

/// What a dependency is about, in words.
fn rules(dependency: &DependencyView) -> Vec<String> {
    let until = match dependency.condition {
        Condition::Started => None,
        Condition::Ready => Some("when ready".to_owned()),
        Condition::Completed => Some("when completed".to_owned()),
    };
    let delay = (dependency.delay_ms.0 > 0).then(|| format!("after {}", dependency.delay_ms));
    let propagates = dependency.propagate.then(|| "propagates".to_owned());
    until.into_iter().chain(delay).chain(propagates).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gaggled_core::{
        base::{
            ids::EpochId,
            time::{Instant, WallTime},
        },
        config::Config,
        protocol::View,
        state::State,
    };

    use super::*;

    /// A chain is not drawn as wide as it is long.
    #[test]
    fn a_deep_tree_goes_on_below() {
        let depends = |i: usize| if i == 0 { String::new() } else { format!("depends: {{\"p{}\": ()}}", i - 1) };
        let programs: Vec<String> = (0..1000).map(|i| format!("\"p{i}\": (command: \"x\", {})", depends(i))).collect();
        let config = Config::parse(&format!("(programs: {{{}}})", programs.join(","))).expect("a configuration").config;
        let state = State::new(Arc::new(config.graph()), EpochId(1));
        let view = View::at(&state, Instant::default()).dump(WallTime::default(), 0, 1000);
        let dump: Dump = serde_json::from_value(serde_json::to_value(&view).expect("JSON")).expect("a dump");
        let drawn = tree(&dump, false);
        assert!(drawn.len() < 200_000, "{} bytes", drawn.len());
        assert!((0..1000).all(|i| drawn.contains(&format!("p{i}"))));
        assert_eq!(drawn.matches("(goes on below)").count(), 41);
    }
}
