//! Makes a failing world smaller as long as it violates the same invariant: fewer programs, dependencies, commands and
//! crashes, and programs that are more like the default.
//!
//! (Zeller and Hildebrandt, *Simplifying and isolating failure-inducing input*, 2002.)

use gaggled_core::protocol::{Action, Selection};
use serde_json::{Map, Value};

use super::{
    scheduler::Policy,
    script::{Script, Source},
};

/// The smallest script found that still shows the same violation.
#[must_use]
pub fn shrink(script: Script) -> Script {
    let mut smallest = script;
    loop {
        let before = smallest.print();
        smallest = in_order(smallest);
        smallest = without_programs(smallest);
        smallest = without_some(smallest, |source| source.dependencies.len(), remove_dependency);
        smallest = without_some(smallest, |source| source.crashes.len(), remove_crash);
        smallest = without_some(smallest, |source| source.commands.len(), remove_command);
        smallest = without_some(smallest, |source| source.groups.len(), remove_group);
        smallest = without_keys(smallest);
        if smallest.print() == before {
            return smallest;
        }
    }
}

/// The changed script, if it still holds.
fn changed(script: &Script, change: impl FnOnce(&mut Source)) -> Option<Script> {
    let mut source = script.source();
    change(&mut source);
    source.script().ok().filter(Script::holds)
}

fn in_order(script: Script) -> Script {
    let fifo = Script { order: Policy::Fifo, ..script.clone() };
    if fifo.holds() { fifo } else { script }
}

fn without_programs(script: Script) -> Script {
    let names: Vec<String> = script.world.graph.programs.values().map(|policy| policy.name.to_string()).collect();
    names.iter().fold(script, |script, name| changed(&script, |source| remove_program(source, name)).unwrap_or(script))
}

fn remove_program(source: &mut Source, name: &str) {
    source.programs.retain(|program| program["name"] != name);
    source.dependencies.retain(|one| one.dependent != name && one.dependency != name);
    for command in &mut source.commands {
        if let Some(selection) = selection(&mut command.action) {
            selection.programs.retain(|word| word != name);
        }
    }
    // A command without names would select everything.
    let is_empty = |action: &mut Action| selection(action).is_some_and(|selection| selection.programs.is_empty());
    source.commands.retain_mut(|command| !is_empty(&mut command.action));
}

fn selection(action: &mut Action) -> Option<&mut Selection> {
    match action {
        Action::Up(selection) | Action::Down(selection) | Action::Restart(selection) => Some(selection),
        _ => None,
    }
}

/// Removes the elements of a list one by one, the last first.
fn without_some(script: Script, len: impl Fn(&Source) -> usize, remove: impl Fn(&mut Source, usize)) -> Script {
    let all = 0..len(&script.source());
    all.rev().fold(script, |script, at| changed(&script, |source| remove(source, at)).unwrap_or(script))
}

fn remove_dependency(source: &mut Source, at: usize) {
    source.dependencies.remove(at);
}

fn remove_crash(source: &mut Source, at: usize) {
    source.crashes.remove(at);
}

/// Removes a command, unless it belongs to those at the end that start every program.
fn remove_command(source: &mut Source, at: usize) {
    if source.commands[at].at_us < source.faults_end_at.0 * 1000 {
        source.commands.remove(at);
    }
}

fn remove_group(source: &mut Source, at: usize) {
    let group = source.groups.remove(at);
    for program in &mut source.programs {
        program.remove("group");
        program.remove("levels");
    }
    let is_for = |action: &Action| matches!(action, Action::Tell { group: name, .. } if *name == group.name);
    source.commands.retain(|command| !is_for(&command.action));
}

/// Replaces the values of each program by their defaults, also in nested maps.
fn without_keys(mut script: Script) -> Script {
    for at in 0..script.world.graph.programs.len() {
        for path in paths(&script.source().programs[at]) {
            let without = |source: &mut Source| remove_key(&mut source.programs[at], &path);
            script = changed(&script, without).unwrap_or(script);
        }
    }
    script
}

fn paths(map: &Map<String, Value>) -> Vec<Vec<String>> {
    let below = |(key, value): (&String, &Value)| {
        let inner = value.as_object().map(paths).unwrap_or_default();
        let inner = inner.into_iter().map(|path| [vec![key.clone()], path].concat());
        inner.chain([vec![key.clone()]]).collect::<Vec<_>>()
    };
    map.iter().filter(|(key, _)| *key != "name").flat_map(below).collect()
}

fn remove_key(map: &mut Map<String, Value>, path: &[String]) {
    match path {
        [key] => drop(map.remove(key)),
        [key, rest @ ..] => {
            if let Some(Value::Object(inner)) = map.get_mut(key) {
                remove_key(inner, rest);
            }
        }
        [] => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::mutants::Mutant;

    #[test]
    fn a_failing_world_becomes_small_and_fails_alike() {
        let failing = (0..200).map(|seed| Script::of(seed, Some(Mutant::NeverTerm))).find(Script::holds);
        let failing = failing.expect("the defect is found");
        let small = shrink(failing.clone());
        assert!(small.holds());
        assert_eq!(small.violation, failing.violation);
        assert!(small.print().len() < failing.print().len());
        assert!(small.world.graph.programs.len() <= 3, "{}", small.print());
    }
}
