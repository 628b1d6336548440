//! Semantic errors in what is said about the cluster, and in dependencies on programs of other nodes.

use std::{collections::BTreeMap, net::IpAddr};

use crate::{
    base::time::Millis,
    cluster::{AT, Assumption, split_name},
    graph::Condition,
};

use super::{CLUSTERGATE, Config, Diagnostic, SpanIndex, is_usable};
use crate::config::{ClusterConfig, DependsConfig};

/// The shortest and the longest `dead_after`.
const DEAD_AFTER: (Millis, Millis) = (Millis(4000), Millis(300_000));

pub(super) fn check(config: &Config, locator: &SpanIndex, found: &mut Vec<Diagnostic>) {
    if let Some(cluster) = &config.gaggled.cluster {
        check_section(config, cluster, locator, found);
        if let Some(node) = &cluster.node {
            found.extend(own_externals(config, node, locator));
        }
    }
    for (name, _) in config.programs.iter().filter(|(_, program)| program.export && config.gaggled.cluster.is_none()) {
        let error = Diagnostic::error(format!("program \"{name}\" is exported, and there is no cluster"));
        let at = locator.nearest(&["programs", name, "export"]);
        found.push(error.at(at).help("add gaggled: (cluster: (name: ..., etcd: [...])), or remove export"));
    }
    check_dependencies(config, locator, found);
}

fn check_section(config: &Config, cluster: &ClusterConfig, locator: &SpanIndex, found: &mut Vec<Diagnostic>) {
    let mut error = |field: &str, message: String, help: &str| {
        let at = locator.nearest(&["gaggled", "cluster", field]);
        found.push(Diagnostic::error(message).at(at).help(help));
    };
    let letters = "use 1 to 64 of the letters a-z, A-Z, 0-9, and . _ -";
    if cluster.name.is_empty() {
        error("name", "the cluster has no name".to_owned(), "add name: \"...\", the same on all nodes");
    } else if !is_usable(&cluster.name) {
        error("name", format!("name {:?} cannot be used for a cluster", cluster.name), letters);
    }
    if let Some(node) = cluster.node.as_ref().filter(|node| !is_usable(node)) {
        error("node", format!("name {node:?} cannot be used for a node"), letters);
    }
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
    if config.programs.get(CLUSTERGATE).is_some() {
        let message = format!("program \"{CLUSTERGATE}\" is there twice: the section cluster adds one of that name");
        let at = locator.find(&["programs", CLUSTERGATE]);
        found.push(Diagnostic::error(message).at(at).help("rename the program"));
    }
}

/// Whether the host of an address, with a port, is this machine.
fn is_loopback(address: &str) -> bool {
    let host = address.trim_end_matches('/').rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// Dependencies on programs of this node that are written as if they were of another. The name of the node may be known only
/// where the configuration is used.
pub fn own_externals(config: &Config, node: &str, locator: &SpanIndex) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for (name, program) in config.programs.iter() {
        for (on, _) in program.depends.iter() {
            if let Some((of, _)) = split_name(on).filter(|(_, at)| *at == node) {
                let error =
                    Diagnostic::error(format!("program \"{name}\" depends on \"{on}\", and this is node {node}"));
                let at = locator.find(&["programs", name, "depends", on]);
                found.push(error.at(at).help(format!("write \"{of}\"")));
            }
        }
    }
    found
}

fn check_dependencies(config: &Config, locator: &SpanIndex, found: &mut Vec<Diagnostic>) {
    let mut assumed: BTreeMap<&str, (Option<Assumption>, Option<Assumption>)> = BTreeMap::new();
    for (name, program) in config.programs.iter() {
        for (on, depends) in program.depends.iter() {
            let places = locator.all(&["programs", name, "depends", on]);
            let wrong = match split_name(on) {
                None => local(depends),
                Some(_) if config.gaggled.cluster.is_none() => Some((
                    ", a program of another node, and there is no cluster",
                    "add gaggled: (cluster: (name: ..., etcd: [...]))".to_owned(),
                )),
                Some((of, node)) if !is_usable(of) || !is_usable(node) => Some((
                    ", which is not the name of a program on a node",
                    format!("write the name of the program, {AT}, and the name of the node, as in \"db@n1\""),
                )),
                Some(_) if places.len() > 1 => Some((" twice", "keep one of the two".to_owned())),
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
            if let Some((what, help)) = wrong {
                let error = Diagnostic::error(format!("program \"{name}\" depends on \"{on}\"{what}"));
                found.push(error.at(places.last().cloned()).help(help));
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
