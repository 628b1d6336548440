//! Which part of a configuration for many nodes is that of one node.
//!
//! A configuration can be the same on all nodes: `on` says where a program or a group runs, `per_host` what differs there, and
//! `%H` stands for the name of the node. What a node runs is a projection of it. A dependency on a program that runs on
//! another node becomes one on `NAME@NODE`, and one on a program of a group that runs on one node at a time one on `NAME@GROUP`.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Config, ProgramConfig,
    node_sets::NodeSets,
    placement::{HostOverride, Placement},
};
use crate::{
    cluster::{AT, split_name},
    host::PidFile,
};

/// Where each program of a configuration runs.
#[derive(Clone, Debug)]
pub struct Places<'a> {
    /// All nodes that are declared.
    all: BTreeSet<String>,
    /// The nodes that each query of the configuration stands for.
    queries: BTreeMap<&'a str, BTreeSet<String>>,
    /// What is said of the place of each program, by itself or by its group.
    placements: BTreeMap<&'a str, Option<&'a str>>,
    /// The group of each program whose group runs on one node at a time.
    shared: BTreeMap<&'a str, &'a str>,
}

impl<'a> Places<'a> {
    /// The places of a configuration. Wrong declarations of nodes, which are reported elsewhere, count as none.
    pub fn new(config: &'a Config) -> Self {
        let sets = NodeSets::new(&config.statements_of_nodes()).unwrap_or_default();
        let groups: BTreeMap<&str, &Placement> =
            config.groups.iter().filter_map(|(name, group)| Some((name, group.on.as_ref()?))).collect();
        let of_group = |program: &'a ProgramConfig| groups.get(program.group.as_deref()?).copied();
        let placement =
            |program: &'a ProgramConfig| program.on.as_ref().or_else(|| of_group(program)).map(Placement::query);
        let placements: BTreeMap<&str, Option<&str>> =
            config.programs.iter().map(|(name, program)| (name, placement(program))).collect();
        let is_shared = |group: &&str| groups.get(group).is_some_and(|placement| placement.is_one());
        let group_of = |program: &'a ProgramConfig| program.group.as_deref().filter(is_shared);
        let shared = config.programs.iter().filter_map(|(name, program)| Some((name, group_of(program)?))).collect();
        let overrides = config.programs.iter().flat_map(|(_, program)| program.per_host.iter().map(|(query, _)| query));
        let of_groups = groups.values().map(|placement| placement.query());
        let queries = placements.values().flatten().copied().chain(overrides).chain(of_groups);
        let nodes = |query: &str| Some(sets.hosts(query)?.into_iter().map(str::to_owned).collect::<BTreeSet<String>>());
        Self {
            all: nodes("*").unwrap_or_default(),
            queries: queries.filter_map(|query| Some((query, nodes(query)?))).collect(),
            placements,
            shared,
        }
    }

    /// The group of a program, if it runs on one node at a time, and another program is not of it.
    pub fn shared_apart(&self, on: &str, dependent: &str) -> Option<&'a str> {
        self.shared.get(on).copied().filter(|group| self.shared.get(dependent) != Some(group))
    }

    /// All nodes that are declared.
    pub fn all(&self) -> &BTreeSet<String> {
        &self.all
    }

    /// The nodes that a set or the name of a node stands for; `None` if there is no such set or node, or the configuration does
    /// not name it.
    pub fn nodes(&self, query: &str) -> Option<&BTreeSet<String>> {
        self.queries.get(query)
    }

    /// The nodes on which a program runs; `None` if it runs wherever the configuration is used, or does not exist.
    pub fn of(&self, program: &str) -> Option<&BTreeSet<String>> {
        static NONE: BTreeSet<String> = BTreeSet::new();
        let query = (*self.placements.get(program)?)?;
        Some(self.nodes(query).unwrap_or(&NONE))
    }

    /// Whether a program exists and runs on a node.
    pub fn runs_on(&self, program: &str, node: &str) -> bool {
        self.placements.contains_key(program) && self.of(program).is_none_or(|nodes| nodes.contains(node))
    }

    /// The other node that a dependency of a program of this node leads to; `None` if it leads to this one.
    ///
    /// # Errors
    ///
    /// The program depended on runs on several other nodes, or on none.
    pub fn dependency(&self, on: &str, from: &str) -> Result<Option<&str>, &BTreeSet<String>> {
        let Some(nodes) = self.of(on).filter(|nodes| !nodes.contains(from)) else { return Ok(None) };
        match (nodes.len(), nodes.first()) {
            (1, Some(node)) => Ok(Some(node)),
            _ => Err(nodes),
        }
    }

    /// The programs of a node that programs of other nodes depend on.
    fn needed_elsewhere(&self, config: &Config, node: &str) -> BTreeSet<String> {
        let mut needed = BTreeSet::new();
        // Also what is disabled, which may be enabled on some nodes.
        for (name, dependent) in config.programs.iter() {
            let is_elsewhere = |from: &&String| *from != node;
            let others = || self.of(name).unwrap_or(&self.all).iter().filter(is_elsewhere);
            for (on, _) in dependent.depends.iter() {
                let is_needed = match split_name(on) {
                    Some((_, at)) => at == node && others().next().is_some(),
                    None if self.shared_apart(on, name).is_some() => self.runs_on(on, node),
                    None => others().any(|from| self.dependency(on, from) == Ok(Some(node))),
                };
                if is_needed {
                    needed.insert(split_name(on).map_or(on, |(local, _)| local).to_owned());
                }
            }
        }
        needed
    }
}

impl Config {
    /// All nodes that are declared, in `nodes` and `hosts`.
    pub fn declared_nodes(&self) -> BTreeSet<String> {
        let sets = NodeSets::new(&self.statements_of_nodes()).unwrap_or_default();
        sets.hosts("*").into_iter().flatten().map(str::to_owned).collect()
    }

    /// The part of a checked configuration that a node runs.
    ///
    /// ```
    /// use gaggled_core::config::Config;
    ///
    /// let text = r#"(
    ///     gaggled: (cluster: (name: "site", etcd: ["http://127.0.0.1:2379"])),
    ///     nodes: {"web": ["n1", "n2"], "data": ["n3"]},
    ///     programs: {
    ///         "db": (command: "postgres", on: All("@data")),
    ///         "web": (command: "web", argv: ["--name", "%H"], on: All("@web"), depends: {"db": ()}),
    ///     },
    /// )"#;
    /// let config = Config::parse(text).expect("it is correct").config;
    /// let n1 = config.project("n1");
    /// let (name, web) = n1.programs.iter().next().expect("a program");
    /// assert_eq!((name, &*web.argv[1]), ("web", "n1"));
    /// assert!(web.depends.get("db@n3").is_some());
    /// assert!(config.project("n3").programs.get("db").is_some_and(|db| db.export));
    /// ```
    #[must_use]
    pub fn project(&self, node: &str) -> Self {
        if self.gaggled.cluster.is_none() {
            return self.clone();
        }
        let places = Places::new(self);
        let needed = places.needed_elsewhere(self, node);
        let configured: BTreeMap<&str, &ProgramConfig> = self.programs.iter().collect();
        let mut projected = self.clone();
        projected.programs.0.retain(|(name, _)| places.runs_on(name, node));
        for (name, program) in &mut projected.programs.0 {
            for (query, differs) in std::mem::take(&mut program.per_host).0 {
                if places.nodes(&query).is_some_and(|nodes| nodes.contains(node)) {
                    apply(differs, program);
                }
            }
            substitute(program, node);
            program.on = None;
            program.export |= needed.contains(name);
            for (on, depends) in &mut program.depends.0 {
                if let (Some(group), Some(other)) = (places.shared_apart(on, name), configured.get(on.as_str())) {
                    depends.condition = Some(depends.effective_condition(other));
                    (*on, depends.of_group) = (format!("{on}{AT}{group}"), true);
                } else if let Some((local, _)) =
                    split_name(on).filter(|(local, at)| *at == node && places.runs_on(local, node))
                {
                    *on = local.to_owned();
                    (depends.on_lost, depends.on_blind) = (None, None);
                } else if let Some(other) = configured.get(on.as_str())
                    && let Ok(Some(at)) = places.dependency(on, node)
                {
                    // Its mode and readiness are known only here.
                    depends.condition = Some(depends.effective_condition(other));
                    *on = format!("{on}{AT}{at}");
                } else if split_name(on).is_none() {
                    // It runs here, and is never lost.
                    (depends.on_lost, depends.on_blind) = (None, None);
                }
            }
        }
        // A group that is placed, and has no programs here, is none of this node.
        let groups = projected.programs.iter().filter_map(|(_, program)| program.group.clone());
        let used: BTreeSet<String> = groups.collect();
        projected.groups.0.retain(|(name, group)| group.on.is_none() || used.contains(name));
        // Which of several nodes runs a group is decided when it runs.
        projected.groups.0.iter_mut().for_each(|(_, group)| group.on = group.on.take().filter(Placement::is_one));
        projected
    }
}

/// Applies what differs in a program on a node.
fn apply(differs: HostOverride, program: &mut ProgramConfig) {
    if differs.command.is_some() || differs.shell.is_some() {
        (program.command, program.shell) = (differs.command, differs.shell);
    }
    program.argv = differs.argv.unwrap_or_else(|| std::mem::take(&mut program.argv));
    program.wd = differs.wd.or(program.wd.take());
    program.log = differs.log.or(program.log.take());
    program.killwait = differs.killwait.or(program.killwait);
    program.enabled = differs.enabled.unwrap_or(program.enabled);
    program.autostart = differs.autostart.unwrap_or(program.autostart);
    for (variable, value) in differs.env.0 {
        program.env.0.retain(|(known, _)| *known != variable);
        program.env.0.push((variable, value));
    }
}

/// Puts the name of the node in the place of `%H`, and `%` in that of `%%`.
fn substitute(program: &mut ProgramConfig, node: &str) {
    let put = |text: &mut String| {
        let parts: Vec<String> = text.split("%%").map(|part| part.replace("%H", node)).collect();
        *text = parts.join("%");
    };
    let ProgramConfig { argv, env, wd, log, pid_file, .. } = program;
    argv.iter_mut().chain(env.0.iter_mut().map(|(_, value)| value)).for_each(put);
    wd.iter_mut().chain(log.iter_mut()).for_each(put);
    if let Some(PidFile::Read(path) | PidFile::Write(path)) = pid_file {
        put(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{base::time::Millis, cluster::Assumption, graph::Condition};

    fn config(rest: &str) -> Config {
        let text = format!("(gaggled: (cluster: (name: \"s\", etcd: [\"http://127.0.0.1:2379\"])), {rest})");
        match Config::parse(&text) {
            Ok(parsed) => parsed.config,
            Err(found) => panic!("{found:?}"),
        }
    }

    fn programs(config: &Config, node: &str) -> Vec<String> {
        config.project(node).programs.iter().map(|(name, _)| name.to_owned()).collect()
    }

    #[test]
    fn d8_names_of_nodes_are_compared_whole() {
        let config = config(
            r#"hosts: ["node1", "node10"], programs: {
                "p1": (command: "a", on: All("node1")), "p10": (command: "a", on: All("node10")), "all": (command: "a"),
            }"#,
        );
        assert_eq!(programs(&config, "node1"), ["p1", "all"]);
        assert_eq!(programs(&config, "node10"), ["p10", "all"]);
        assert_eq!(programs(&config, "node"), ["all"], "a node of which nothing is said");
    }

    #[test]
    fn k8_a_program_placed_on_a_set_runs_on_its_hosts() {
        let config = config(
            r#"nodes: {"prime": ["two.baz.com", "five.baz.com"], "even": ["six.baz.com"], "all": ["@prime", "@even"]},
            programs: {"p": (command: "a", on: All("@prime"))}"#,
        );
        assert_eq!(programs(&config, "five.baz.com"), ["p"]);
        assert!(programs(&config, "six.baz.com").is_empty());
    }

    #[test]
    fn what_differs_on_a_node_is_applied_in_order_and_its_name_put_in() {
        let config = config(
            r#"nodes: {"big": ["n1", "n2"]}, programs: {"web": (
                command: "web", argv: ["%H", "100%%"], log: "/var/log/web-%H.log", env: {"SHARDS": "1", "NODE": "%H"},
                per_host: {"@big": (env: {"SHARDS": "8"}, killwait: "1m"), "n2": (argv: ["-n", "%H"], env: {"SHARDS": "16"})},
            )}"#,
        );
        let of = |node: &str| config.project(node).programs.get("web").cloned().expect("web");
        let (one, two) = (of("n1"), of("n2"));
        assert_eq!(
            (one.argv, one.log.as_deref()),
            (vec!["n1".to_owned(), "100%".to_owned()], Some("/var/log/web-n1.log"))
        );
        assert_eq!((one.env.get("SHARDS").map(String::as_str), one.killwait), (Some("8"), Some(Millis(60_000))));
        assert_eq!(
            (two.argv, two.env.get("SHARDS").map(String::as_str)),
            (vec!["-n".to_owned(), "n2".to_owned()], Some("16"))
        );
        assert_eq!(two.env.get("NODE").map(String::as_str), Some("n2"));
    }

    #[test]
    fn a_dependency_on_a_program_of_a_shared_group_follows_the_group() {
        let config = config(
            r#"nodes: {"data": ["n1", "n2"]}, hosts: ["n3"], groups: {"store": (on: One("@data"))}, programs: {
                "disk": (command: "a", mode: Wait, group: "store"),
                "db": (command: "a", group: "store", depends: {"disk": ()}),
                "web": (command: "a", depends: {"db": (), "disk": (on_lost: Keep)}),
            }"#,
        );
        let edges = |node: &str, program: &str| -> Vec<String> {
            let projected = config.project(node);
            let program = projected.programs.get(program).expect("it runs there");
            program.depends.iter().map(|(on, _)| on.to_owned()).collect()
        };
        assert_eq!(edges("n1", "web"), ["db@store", "disk@store"], "also where the group may run");
        assert_eq!(edges("n3", "web"), ["db@store", "disk@store"]);
        assert_eq!(edges("n1", "db"), ["disk"], "in the group it is a program of this node");
        let three = config.project("n3").graph();
        let disk = three.programs[three.names()["disk@store"]].external.clone().expect("it is one of another node");
        assert!(disk.of_group && disk.on_lost == Assumption::Keep && disk.place() == "where group store runs");
        let one = config.project("n1").graph();
        assert!(one.programs[one.names()["db"]].export && one.programs[one.names()["disk"]].export);
    }

    #[test]
    fn dependencies_lead_to_the_node_of_the_program_which_exports_it() {
        let config = config(
            r#"nodes: {"web": ["n1", "n2"], "data": ["n3"]}, groups: {"shop": (on: All("@web")), "here": ()}, programs: {
                "db": (command: "a", mode: Wait, on: All("@data")), "cache": (command: "a"),
                "web": (command: "a", group: "shop", depends: {"db": (on_lost: Keep), "cache": (), "cache@n3": ()}),
            }"#,
        );
        let one = config.project("n1");
        let web = one.programs.get("web").expect("web");
        let edges: Vec<&str> = web.depends.iter().map(|(on, _)| on).collect();
        assert_eq!(edges, ["db@n3", "cache", "cache@n3"]);
        let db = web.depends.get("db@n3").expect("the dependency");
        assert_eq!(
            (db.condition, db.on_lost),
            (Some(Condition::Completed), Some(Assumption::Keep)),
            "it is of mode Wait"
        );
        assert!(!one.programs.get("cache").expect("cache").export);
        let three = config.project("n3");
        let exported: Vec<&str> = three.programs.iter().filter(|(_, p)| p.export).map(|(name, _)| name).collect();
        assert_eq!(exported, ["db", "cache"]);
        let groups: Vec<&str> = three.groups.iter().map(|(name, _)| name).collect();
        assert_eq!(groups, ["here"]);
        assert_eq!(one.graph().programs.values().filter(|policy| !policy.is_here()).count(), 2);
    }
}
