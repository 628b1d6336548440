//! Dependency cycles: programs that would wait for each other forever.

use std::collections::{BTreeSet, VecDeque};

use petgraph::{algo::tarjan_scc, graphmap::DiGraphMap};

use super::groups;
use crate::config::{Config, Diagnostic, SpanIndex};

pub(super) fn check(config: &Config, locator: &SpanIndex, found: &mut Vec<Diagnostic>) {
    let mut graph = DiGraphMap::<&str, ()>::new();
    for (name, program) in config.programs.iter() {
        graph.add_node(name);
        for (on, _) in program.depends.iter() {
            graph.add_edge(name, on, ());
        }
    }
    for (name, before) in groups::held_back(config) {
        graph.add_edge(name, before, ());
    }
    let mut reported: Vec<(Vec<&str>, Diagnostic)> = Vec::new();
    for component in tarjan_scc(&graph) {
        let members: BTreeSet<&str> = component.iter().copied().collect();
        let Some(first) = config.programs.iter().map(|(name, _)| name).find(|name| members.contains(name)) else {
            continue;
        };
        let Some(path) = path_back(&graph, &members, first) else { continue };
        let closing = path.iter().rev().nth(1).copied().unwrap_or(first);
        let error = Diagnostic::error(format!("programs depend on each other in a cycle: {}", path.join(" -> ")))
            .at(locator.nearest(&["programs", closing, "depends", first]))
            .help(if config.groups.is_empty() && config.all_groups().is_empty() {
                "remove one of these dependencies"
            } else {
                "remove one of these dependencies, or change the order: in a group a program waits for those of mode Wait and Test before it"
            });
        reported.push((path, error));
    }
    reported.sort_by(|a, b| a.0.cmp(&b.0));
    found.extend(reported.into_iter().map(|(_, error)| error));
}

/// The shortest way from a program back to itself, within its component.
fn path_back<'a>(graph: &DiGraphMap<&'a str, ()>, members: &BTreeSet<&'a str>, start: &'a str) -> Option<Vec<&'a str>> {
    let mut queue = VecDeque::from([vec![start]]);
    let mut seen = BTreeSet::new();
    while let Some(path) = queue.pop_front() {
        for next in path.last().map(|last| graph.neighbors(*last)).into_iter().flatten() {
            let mut longer = path.clone();
            longer.push(next);
            if next == start {
                return Some(longer);
            }
            if members.contains(next) && seen.insert(next) {
                queue.push_back(longer);
            }
        }
    }
    None
}
