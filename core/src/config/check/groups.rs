//! Semantic errors in groups and levels.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    base::ids::GroupId,
    graph::{Graph, Mode, RESTART, START, STOP},
};

use super::{Config, Diagnostic, SpanIndex, is_usable, unusable};

pub(super) fn check(config: &Config, locator: &SpanIndex, found: &mut Vec<Diagnostic>) {
    for (name, program) in config.programs.iter() {
        let at = |field: &str| locator.nearest(&["programs", name, field]);
        if program.group.is_none() && !program.levels.is_empty() {
            found.push(
                Diagnostic::error(format!("program \"{name}\" has levels and no group"))
                    .at(at("levels"))
                    .help("add group: \"...\", or remove levels"),
            );
        }
        for level in program.levels.iter().filter(|level| !is_usable(level)) {
            found.push(unusable("level", level).at(at("levels")));
        }
    }
    let graph = config.graph();
    for (id, group) in graph.groups.iter() {
        let name = &*group.name;
        let at = locator.find(&["groups", name]);
        let at = at.or_else(|| {
            let member = config.programs.iter().find(|(_, program)| program.group.as_deref() == Some(name));
            member.and_then(|(program, _)| locator.nearest(&["programs", program, "group"]))
        });
        if !is_usable(name) {
            found.push(unusable("group", name).at(at.clone()));
        }
        if let [_, again, ..] = locator.all(&["groups", name]) {
            let error = Diagnostic::error(format!("group \"{name}\" is there twice"));
            found.push(error.at(Some(again.clone())).help("rename one of the two, or remove it"));
        }
        if config.programs.get(name).is_some() {
            let error = Diagnostic::error(format!("group \"{name}\" has the name of a program"));
            found.push(error.at(at).help("rename one of the two: commands take both"));
        }
        for (field, level) in [("level", Some(&group.default_level)), ("on_failure", group.fallback.as_ref())] {
            let Some(level) = level.filter(|level| !exists(&graph, id, level)) else { continue };
            let levels = named(&graph, id);
            let message = format!("group \"{name}\" has no level \"{level}\": none of its programs runs there");
            let help = format!("write {field}: with one of {}, or \"{STOP}\"", levels.join(", "));
            let error = Diagnostic::error(message).at(locator.nearest(&["groups", name, field]));
            found.push(error.help(if levels.is_empty() { format!("write {field}: \"{STOP}\"") } else { help }));
        }
    }
}

/// Whether a group has a level, without its `level` and `on_failure`, which are checked against this.
fn exists(graph: &Graph, group: GroupId, level: &str) -> bool {
    let members = &graph.groups[group].members;
    level != RESTART
        && (level == STOP
            || members.is_empty() && level == START
            || members.iter().any(|member| graph.programs[*member].runs_at(level)))
        && (level == START || level == STOP || members.iter().any(|member| graph.programs[*member].names(level)))
}

fn named(graph: &Graph, group: GroupId) -> Vec<String> {
    let members = graph.groups[group].members.iter();
    let levels = members.flat_map(|member| graph.programs[*member].levels.iter());
    let levels: BTreeSet<String> =
        levels.filter(|level| &***level != RESTART).map(|level| format!("\"{level}\"")).collect();
    levels.into_iter().collect()
}

/// Pairs of a program and an earlier program of its group, of mode `Wait` or `Test`, that it waits for.
pub(super) fn held_back(config: &Config) -> Vec<(&str, &str)> {
    let mut pairs = Vec::new();
    let mut before: BTreeMap<&str, Vec<(&str, &[String])>> = BTreeMap::new();
    for (name, program) in config.enabled_programs() {
        let Some(group) = program.group.as_deref() else { continue };
        let holders = before.entry(group).or_default();
        let meets = |levels: &[String]| {
            levels.is_empty() || program.levels.is_empty() || levels.iter().any(|level| program.levels.contains(level))
        };
        pairs.extend(holders.iter().filter(|(_, levels)| meets(levels)).map(|(holder, _)| (name, *holder)));
        if matches!(program.effective_mode(), Mode::Wait | Mode::Test) {
            holders.push((name, &program.levels));
        }
    }
    pairs
}
