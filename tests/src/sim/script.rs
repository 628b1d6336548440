//! A world as text: a shrunk failing seed, kept in `tests/scenarios` as a regression test.
//!
//! Only the values that differ from those of a well-behaved program with the default configuration are written.
//! `violation` is the invariant that finds the defect `mutant`; without the defect no invariant is violated.

use std::{collections::BTreeMap, str::FromStr};

use gaggled_core::{
    base::{
        ids::{DenseId, GroupId, ProgramId},
        time::{Instant, Millis},
    },
    graph::{Condition, Dependency, Graph, Group, Policy},
    protocol::Action,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use super::{
    crash::CrashPlan,
    invariants,
    mutants::Mutant,
    scheduler::{self, Simulation},
    world::{Behaviour, OperatorAction, World},
};

/// A world, the order of its messages, and the defect that it finds, if any.
#[derive(Clone, Debug)]
pub struct Script {
    /// The world.
    pub world: World,
    /// The order in which messages are delivered.
    pub order: scheduler::Policy,
    /// The defect that it finds.
    pub mutant: Option<Mutant>,
    /// The invariant that finds it.
    pub violation: Option<String>,
}

/// The text, whose programs are still without defaults.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Source {
    pub seed: u64,
    pub order: scheduler::Policy,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutant: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub violation: Option<String>,
    pub killwait: Millis,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupSource>,
    pub programs: Vec<Map<String, Value>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<DependencySource>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<CommandSource>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub crashes: Vec<CrashPlan>,
    pub faults_end_at: Millis,
    pub shutdown_at: Millis,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GroupSource {
    pub name: String,
    pub default_level: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DependencySource {
    pub dependent: String,
    pub dependency: String,
    #[serde(default)]
    pub condition: Condition,
    #[serde(default)]
    pub delay: Millis,
    #[serde(default)]
    pub propagate: bool,
}

/// A command and when it is given, in microseconds.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct CommandSource {
    pub at_us: u64,
    #[serde(flatten)]
    pub action: Action,
}

/// The key of a program for its behaviour; all others are its configuration.
const BEHAVIOUR: &str = "behaviour";

impl Script {
    /// The world of a seed.
    pub fn of(seed: u64, mutant: Option<Mutant>) -> Self {
        let (world, order) = (World::new(seed), scheduler::Policy::of(seed));
        let script = Self { world, order, mutant, violation: None };
        let violation = script.violations().first().map(|violation| invariant(violation).to_owned());
        Self { violation, ..script }
    }

    /// The violations of its run.
    pub fn violations(&self) -> Vec<String> {
        let run = Simulation::new(&self.world, self.order, self.mutant).run();
        invariants::check(&self.world, &run)
    }

    /// Whether it shows its violation with its defect, and none without.
    pub fn holds(&self) -> bool {
        let is_it = |found: &String| self.violation.as_deref() == Some(invariant(found));
        self.violations().iter().any(is_it)
            && (self.mutant.is_none() || Self { mutant: None, ..self.clone() }.violations().is_empty())
    }

    /// Its text.
    pub fn print(&self) -> String {
        self.source().print()
    }

    pub(super) fn source(&self) -> Source {
        let World { graph, .. } = &self.world;
        let name = |id: ProgramId| graph.programs[id].name.to_string();
        let program = |(id, policy): (ProgramId, &Policy)| {
            let mut keys = differences(&to_map(policy), &to_map(&plain_policy(graph.killwait)));
            keys.extend(policy.group.map(|group| ("group".to_owned(), json!(graph.groups[group].name))));
            let behaviour = differences(&to_map(&self.world.behaviours[id.index()]), &to_map(&Behaviour::WELL));
            keys.extend((!behaviour.is_empty()).then(|| (BEHAVIOUR.to_owned(), Value::Object(behaviour))));
            keys
        };
        let group = |group: &Group| GroupSource {
            name: group.name.to_string(),
            default_level: group.default_level.to_string(),
            fallback: group.fallback.as_ref().map(ToString::to_string),
        };
        let dependency = |one: &Dependency| DependencySource {
            dependent: name(one.dependent),
            dependency: name(one.dependency),
            condition: one.condition,
            delay: one.delay,
            propagate: one.propagate,
        };
        let command = |one: &OperatorAction| CommandSource { at_us: one.at.as_micros(), action: one.action.clone() };
        Source {
            seed: self.world.seed,
            order: self.order,
            mutant: self.mutant.map(|mutant| format!("{mutant:?}")),
            violation: self.violation.clone(),
            killwait: graph.killwait,
            groups: graph.groups.values().map(group).collect(),
            programs: graph.programs.iter().map(program).collect(),
            dependencies: graph.dependencies.values().map(dependency).collect(),
            commands: self.world.commands.iter().map(command).collect(),
            crashes: self.world.crashes.clone(),
            faults_end_at: Millis(self.world.faults_end_at.as_millis()),
            shutdown_at: Millis(self.world.shutdown_at.as_millis()),
        }
    }
}

impl FromStr for Script {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let value: Value = ron::from_str(text).map_err(|error| error.to_string())?;
        serde_json::from_value::<Source>(value).map_err(|error| error.to_string())?.script()
    }
}

impl Source {
    pub(super) fn print(&self) -> String {
        // Each program, command and dependency takes one line.
        let pretty = ron::ser::PrettyConfig::new().depth_limit(2).indentor("    ");
        ron::ser::to_string_pretty(&json!(self), pretty).expect("it is plain data") + "\n"
    }

    pub(super) fn script(self) -> Result<Script, String> {
        let mut graph = Graph::new(self.killwait);
        for GroupSource { name, default_level, fallback } in &self.groups {
            graph.add_group(Group::new(name, default_level, fallback.as_deref()));
        }
        let mut behaviours = Vec::new();
        for mut keys in self.programs {
            let behaviour = keys.remove(BEHAVIOUR).unwrap_or_else(|| json!({}));
            behaviours.push(with_defaults(behaviour, to_map(&Behaviour::WELL))?);
            let group = keys.remove("group").map(|name| group_named(&graph, &name)).transpose()?;
            let policy: Policy = with_defaults(Value::Object(keys), to_map(&plain_policy(self.killwait)))?;
            graph.add_program(Policy { group, ..policy });
        }
        let names: BTreeMap<_, _> = graph.names();
        let find = |name: &str| names.get(name).copied().ok_or_else(|| format!("there is no program {name:?}"));
        for DependencySource { dependent, dependency, condition, delay, propagate } in self.dependencies {
            let (dependent, dependency) = (find(&dependent)?, find(&dependency)?);
            graph.add_dependency(Dependency { dependent, dependency, condition, delay, propagate });
        }
        let mutant = |name: String| {
            let found = Mutant::ALL.into_iter().find(|mutant| format!("{mutant:?}") == name);
            found.ok_or_else(|| format!("there is no mutant {name:?}"))
        };
        let command = |CommandSource { at_us, action }| OperatorAction { at: Instant::from_micros(at_us), action };
        let moment = |millis: Millis| Instant::default() + millis;
        let world = World {
            seed: self.seed,
            graph,
            behaviours,
            commands: self.commands.into_iter().map(command).collect(),
            crashes: self.crashes,
            faults_end_at: moment(self.faults_end_at),
            shutdown_at: moment(self.shutdown_at),
        };
        let mutant = self.mutant.map(mutant).transpose()?;
        Ok(Script { world, order: self.order, mutant, violation: self.violation })
    }
}

/// The invariant that a violation names.
fn invariant(violation: &str) -> &str {
    violation.split(':').next().unwrap_or(violation)
}

fn group_named(graph: &Graph, name: &Value) -> Result<GroupId, String> {
    name.as_str().and_then(|name| graph.group(name)).ok_or_else(|| format!("there is no group {name}"))
}

/// A program with the default configuration.
fn plain_policy(killwait: Millis) -> Policy {
    Policy { killwait, ..Policy::new("") }
}

fn to_map(value: &impl Serialize) -> Map<String, Value> {
    match json!(value) {
        Value::Object(map) => map,
        other => unreachable!("{other} is no map"),
    }
}

/// The keys whose values differ from the default, also in nested maps.
fn differences(value: &Map<String, Value>, default: &Map<String, Value>) -> Map<String, Value> {
    let differs = |(key, value): (&String, &Value)| match (value, default.get(key)) {
        (Value::Object(value), Some(Value::Object(default))) => {
            let inner = differences(value, default);
            (!inner.is_empty()).then(|| (key.clone(), Value::Object(inner)))
        }
        (value, default) => (Some(value) != default && key != "group").then(|| (key.clone(), value.clone())),
    };
    value.iter().filter_map(differs).collect()
}

/// A value, with defaults for the keys that it leaves out.
fn with_defaults<T: DeserializeOwned>(value: Value, default: Map<String, Value>) -> Result<T, String> {
    fn merge(value: Value, default: Option<Value>) -> Value {
        match (value, default) {
            (Value::Object(value), Some(Value::Object(mut default))) => {
                for (key, value) in value {
                    let below = default.remove(&key);
                    default.insert(key, merge(value, below));
                }
                Value::Object(default)
            }
            (value, _) => value,
        }
    }
    serde_json::from_value(merge(value, Some(Value::Object(default)))).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_is_the_same_when_it_was_written_and_read() {
        for seed in 0..200 {
            let script = Script::of(seed, None);
            let text = script.print();
            let read: Script = text.parse().unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert_eq!(read.print(), text);
            let run = |script: &Script| Simulation::new(&script.world, script.order, None).run().envelopes;
            assert_eq!(run(&read), run(&script), "seed {seed}\n{text}");
        }
    }

    #[test]
    fn what_a_scenario_names_must_be_there() {
        let text = Script::of(2, None).print().replacen("\"name\": \"p0\"", "\"name\": \"other\"", 1);
        let error = text.parse::<Script>().expect_err("a dependency names p0");
        assert!(error.contains("p0"), "{error}");
    }
}
