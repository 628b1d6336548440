//! Semantic errors in what is said about the cluster, and in dependencies on programs of other nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{
    base::time::Millis,
    cluster::{AT, Assumption, split_name},
    graph::{Condition, Leaves, Mode, STOP},
};

use super::{Config, Diagnostic, SpanIndex, is_usable, nearest_name, unusable};
use crate::config::{CLUSTERGATE, ClusterConfig, DependsConfig, KEEPER, Placement, projection::Places};

/// The shortest and the longest `dead_after`.
const DEAD_AFTER: (Millis, Millis) = (Millis(4000), Millis(300_000));

pub(super) fn check(config: &Config, locator: &SpanIndex, found: &mut Vec<Diagnostic>) {
    if let Some(cluster) = &config.gaggled.cluster {
        check_section(config, cluster, locator, found);
    }
    for (name, _) in config.programs.iter().filter(|(_, program)| program.export && config.gaggled.cluster.is_none()) {
        let error = Diagnostic::error(format!("program \"{name}\" is exported, and there is no cluster"));
        let at = locator.nearest(&["programs", name, "export"]);
        found.push(error.at(at).help("add gaggled: (cluster: (name: ..., etcd: [...])), or remove export"));
    }
    let places = Places::new(config);
    check_places(config, &places, locator, found);
    check_dependencies(config, &places, locator, found);
}

fn check_section(config: &Config, cluster: &ClusterConfig, locator: &SpanIndex, found: &mut Vec<Diagnostic>) {
    let at = |field: &str| locator.nearest(&["gaggled", "cluster", field]);
    if cluster.name.is_empty() {
        let error = Diagnostic::error("the cluster has no name").at(at("name"));
        found.push(error.help("add name: \"...\", the same on all nodes"));
    } else if !is_usable(&cluster.name) {
        found.push(unusable("cluster", &cluster.name).at(at("name")));
    }
    if let Some(node) = cluster.node.as_ref().filter(|node| !is_usable(node)) {
        found.push(unusable("node", node).at(at("node")));
    }
    let mut error = |field: &str, message: String, help: &str| {
        found.push(Diagnostic::error(message).at(at(field)).help(help));
    };
    if cluster.etcd.is_empty() {
        let help = "add etcd: [\"https://10.0.0.1:2379\", ...], with the urls of its members";
        error("etcd", "the cluster has no etcd".to_owned(), help);
    }
    for url in &cluster.etcd {
        match url.split_once("://") {
            Some(("https", rest)) if !rest.is_empty() => {}
            Some(("http", rest)) if cluster.insecure || is_loopback(rest) => {}
            Some(("http", _)) => {
                let message = format!("{url} would be spoken to without TLS, over a network");
                error("etcd", message, "write https://, or insecure: true if the network is trusted");
            }
            _ => error("etcd", format!("{url:?} is not a url of etcd"), "write for instance \"https://10.0.0.1:2379\""),
        }
    }
    if cluster.cert.is_some() != cluster.key.is_some() {
        error("cert", "the cluster has only one of cert and key".to_owned(), "give both, or neither");
    }
    if cluster.dead_after < DEAD_AFTER.0 || cluster.dead_after > DEAD_AFTER.1 {
        let message = format!("dead_after of the cluster is {}", cluster.dead_after);
        error("dead_after", message, &format!("write {} to {}", DEAD_AFTER.0, DEAD_AFTER.1));
    }
    let keeper = Some(KEEPER).filter(|_| !config.shared_groups().is_empty());
    for name in [CLUSTERGATE].into_iter().chain(keeper).filter(|name| config.programs.get(name).is_some()) {
        let message = format!("program \"{name}\" is there twice: the section cluster adds one of that name");
        found.push(Diagnostic::error(message).at(locator.find(&["programs", name])).help("rename the program"));
    }
}

/// Whether the host of an address, with a port, is this machine.
fn is_loopback(address: &str) -> bool {
    let host = address.trim_end_matches('/').rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// Dependencies on programs of this node, by their names on it, that it does not have. The name of the node may be known only
/// where the configuration is used.
pub fn own_externals(config: &Config, node: &str, locator: &SpanIndex) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let places = Places::new(config);
    for (name, program) in config.programs.iter().filter(|(name, _)| places.runs_on(name, node)) {
        for (on, _) in program.depends.iter() {
            let missing = split_name(on).filter(|(of, at)| *at == node && !places.runs_on(of, node));
            if let Some((of, _)) = missing {
                let message =
                    format!("program \"{name}\" depends on \"{on}\", and this node {node} has no program \"{of}\"");
                let error = Diagnostic::error(message).at(locator.find(&["programs", name, "depends", on]));
                let near = nearest_name(of, config.programs.iter().map(|(name, _)| name));
                found.push(error.help(near.unwrap_or_else(|| "add such a program, or correct the node".to_owned())));
            }
        }
    }
    found
}

/// What is wrong with the places of programs and groups.
fn check_places(config: &Config, places: &Places<'_>, locator: &SpanIndex, found: &mut Vec<Diagnostic>) {
    let sets = || config.nodes.iter().map(|(set, _)| set);
    let mut check = |place: &[&str], whose: &str, query: &str| {
        let at = locator.nearest(place);
        let error = if config.gaggled.cluster.is_none() {
            let error = Diagnostic::error(format!("{whose} is placed on nodes, and there is no cluster"));
            error.help("add gaggled: (cluster: (name: ..., etcd: [...])), or remove it")
        } else if places.nodes(query).is_none() {
            let hosts = places.all().iter().map(String::as_str);
            let near = match query.strip_prefix('@') {
                Some(set) => nearest_name(set, sets()),
                None => nearest_name(query, hosts),
            };
            let help = "declare it in nodes or hosts, or correct the name: \"@web\" is a set, \"n1\" a node, \"*\" all";
            let error =
                Diagnostic::error(format!("{whose} is placed on {query:?}, which is no node and no set of nodes"));
            error.help(near.unwrap_or_else(|| help.to_owned()))
        } else {
            return;
        };
        found.push(error.at(at));
    };
    for (name, group) in config.groups.iter() {
        if let Some(placement) = &group.on {
            check(&["groups", name, "on"], &format!("group \"{name}\""), placement.query());
        }
    }
    for (name, program) in config.programs.iter() {
        if let Some(placement) = &program.on {
            check(&["programs", name, "on"], &format!("program \"{name}\""), placement.query());
        }
        for (query, _) in program.per_host.iter() {
            check(&["programs", name, "per_host", query], &format!("a difference of program \"{name}\""), query);
        }
    }
    check_shared_groups(config, places, locator, found);
    for (name, program) in config.programs.iter().filter(|(_, program)| program.on.is_some()) {
        let group =
            program.group.as_deref().filter(|group| config.groups.get(group).is_some_and(|group| group.on.is_some()));
        if let Some(group) = group {
            let error =
                Diagnostic::error(format!("program \"{name}\" is placed on nodes, and so is its group \"{group}\""));
            let at = locator.find(&["programs", name, "on"]);
            found.push(error.at(at).help("remove on from the program: a group runs as a whole"));
        }
    }
}

/// What is wrong with groups that run on one of several nodes.
fn check_shared_groups(config: &Config, places: &Places<'_>, locator: &SpanIndex, found: &mut Vec<Diagnostic>) {
    let shared =
        |group: &str| config.groups.get(group).is_some_and(|group| group.on.as_ref().is_some_and(Placement::is_one));
    let mut error = |place: &[&str], message: String, help: &str| {
        found.push(Diagnostic::error(message).at(locator.nearest(place)).help(help));
    };
    let dead_after =
        config.gaggled.cluster.as_ref().map_or(ClusterConfig::SHARED_DEAD_AFTER, |cluster| cluster.dead_after);
    for (name, group) in config.groups.iter() {
        if shared(name) && dead_after < ClusterConfig::SHARED_DEAD_AFTER {
            let message =
                format!("group \"{name}\" runs on one node at a time, and dead_after of the cluster is {dead_after}");
            let help = format!(
                "write dead_after: \"{}\" or more, so that an answer of etcd may be lost",
                ClusterConfig::SHARED_DEAD_AFTER
            );
            error(&["groups", name, "on"], message, &help);
        }
        if shared(name) && group.on_failure.is_some() {
            let message = format!("group \"{name}\" runs on one node at a time, and has on_failure");
            error(&["groups", name, "on_failure"], message, "remove it: when the group fails, another node runs it");
        }
        let at = ["groups", name, "prefer"];
        if !group.prefer.is_empty() && !shared(name) {
            error(
                &at,
                format!("group \"{name}\" prefers nodes, and does not run on one of several"),
                "add on: One(...), or remove prefer",
            );
        }
        let candidates = group.on.as_ref().and_then(|on| places.nodes(on.query()));
        for node in &group.prefer {
            if candidates.is_some_and(|candidates| !candidates.contains(node)) {
                error(
                    &at,
                    format!("group \"{name}\" prefers {node:?}, which is none of its nodes"),
                    "correct the name, or add the node to the set",
                );
            }
        }
    }
    let group_of = |program: &str| config.programs.get(program).and_then(|program| program.group.as_deref());
    for (name, program) in config.programs.iter() {
        if program.on.as_ref().is_some_and(Placement::is_one) {
            let help = "put it into a group with on: One(...)";
            error(
                &["programs", name, "on"],
                format!("program \"{name}\" is to run on one of several nodes, as only groups can"),
                help,
            );
        }
        let is_shared = program.group.as_deref().is_some_and(shared);
        if is_shared && program.levels.iter().any(|level| level == STOP) && program.effective_mode() == Mode::Respawn {
            let message = format!(
                "program \"{name}\" runs at level stop of a group that runs on one node at a time, and does not end"
            );
            error(
                &["programs", name, "levels"],
                message,
                "add mode: Wait or mode: Once: the group is left to another node when it has ended",
            );
        }
        if is_shared && program.levels.iter().any(|level| level == STOP) && program.retry {
            let message = format!(
                "program \"{name}\" runs at level stop of a group that runs on one node at a time, and is retried"
            );
            let help = "remove retry: it is run again as long as no other node runs the group";
            error(&["programs", name, "retry"], message, help);
        }
        if is_shared && program.leaves == Some(Leaves::Release) {
            let message =
                format!("program \"{name}\" of a group that runs on one node at a time leaves processes behind");
            error(&["programs", name, "leaves"], message, "write leaves: Kill, or leaves: Keep with a stop_command");
        }
        for (on, depends) in program.depends.iter() {
            let Some((of, _)) = split_name(on).filter(|_| !depends.of_group) else { continue };
            if let Some(group) = group_of(of).filter(|group| shared(group)) {
                let message = format!(
                    "program \"{name}\" depends on \"{on}\" of group \"{group}\", which runs on one of several nodes"
                );
                let help = format!("write \"{of}\": that is the one that runs, on whichever node");
                error(&["programs", name, "depends", on], message, &help);
            }
        }
    }
}

/// What is wrong with a dependency between programs that run on several nodes.
fn between_nodes(places: &Places<'_>, name: &str, on: &str) -> Option<(String, String)> {
    let nodes = places.of(name).unwrap_or(places.all());
    if let Some((of, at)) = split_name(on) {
        let is_wrong = places.of(of).is_some_and(|nodes| !nodes.contains(at));
        return is_wrong.then(|| {
            (format!(", and \"{of}\" does not run on {at}"), format!("it runs on {}", listed(places.of(of))))
        });
    }
    if places.shared_apart(on, name).is_some() {
        return None;
    }
    let wrong = nodes.iter().find_map(|from| Some((from, places.dependency(on, from).err()?)))?;
    Some(match wrong {
        (_, others) if others.is_empty() => (", which runs on no node".to_owned(), "place it on a node".to_owned()),
        (from, others) => (
            format!(", which runs on several nodes and not on {from}"),
            format!("say which: \"{on}{AT}{}\"", others.first().map_or("", String::as_str)),
        ),
    })
}

fn listed(nodes: Option<&BTreeSet<String>>) -> String {
    let nodes: Vec<&str> = nodes.into_iter().flatten().map(String::as_str).collect();
    if nodes.is_empty() { "no node".to_owned() } else { nodes.join(", ") }
}

fn check_dependencies(config: &Config, places: &Places<'_>, locator: &SpanIndex, found: &mut Vec<Diagnostic>) {
    let mut assumed: BTreeMap<&str, (Option<Assumption>, Option<Assumption>)> = BTreeMap::new();
    for (name, program) in config.programs.iter() {
        for (on, depends) in program.depends.iter() {
            let spans = locator.all(&["programs", name, "depends", on]);
            let wrong = match split_name(on) {
                None if places.of(on).is_none() => local(depends),
                None => None,
                Some(_) if config.gaggled.cluster.is_none() => Some((
                    ", a program of another node, and there is no cluster",
                    "add gaggled: (cluster: (name: ..., etcd: [...]))".to_owned(),
                )),
                Some((of, node)) if !is_usable(of) || !is_usable(node) => Some((
                    ", which is not the name of a program on a node",
                    format!("write the name of the program, {AT}, and the name of the node, as in \"db@n1\""),
                )),
                Some(_) if spans.len() > 1 => Some((" twice", "keep one of the two".to_owned())),
                Some(_) if depends.condition == Some(Condition::Completed) && depends.propagate => Some((
                    " to complete, so there is nothing to propagate when it is down",
                    "remove propagate".to_owned(),
                )),
                Some(_) => {
                    let known = assumed.entry(on).or_default();
                    let differs = |known: &mut Option<Assumption>, said: Option<Assumption>| {
                        said.is_some_and(|said| *known.get_or_insert(said) != said)
                    };
                    (differs(&mut known.0, depends.on_lost) || differs(&mut known.1, depends.on_blind)).then(|| {
                        (
                            " with another on_lost or on_blind than a program before it",
                            "write the same: what is assumed of a program holds for all that depend on it".to_owned(),
                        )
                    })
                }
            };
            let elsewhere = || if depends.of_group { None } else { between_nodes(places, name, on) };
            let wrong = wrong.map(|(what, help)| (what.to_owned(), help)).or_else(elsewhere);
            if let Some((what, help)) = wrong {
                let error = Diagnostic::error(format!("program \"{name}\" depends on \"{on}\"{what}"));
                found.push(error.at(spans.last().cloned()).help(help));
            }
        }
    }
}

/// What is wrong with a dependency on a program of this node.
fn local(depends: &DependsConfig) -> Option<(&'static str, String)> {
    (depends.on_lost.is_some() || depends.on_blind.is_some()).then(|| {
        let help = "remove on_lost and on_blind: they are for programs of other nodes, such as \"db@n1\"";
        (" of this node, which is never lost", help.to_owned())
    })
}
