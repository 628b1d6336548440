//! `gaggled nodes`: which hosts a set has, and which sets a host is in.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use gaggled_core::config::node_sets::NodeSets;

use crate::{
    common::{diagnostics, host::host_name, output},
    offline::import,
};

/// The variable that names a `ClusterIt` cluster file.
const CLUSTER: &str = "CLUSTER";

/// What is asked.
#[derive(Debug, Args)]
pub struct Query {
    /// A set (@name, @__orphans__), a host, or "*" for all hosts
    #[arg(default_value = "*")]
    what: Vec<String>,
    /// A configuration; the ClusterIt file in $CLUSTER if it has no nodes
    #[arg(short, long)]
    config: Option<PathBuf>,
    /// The sets that a host is in
    #[arg(long, value_name = "HOST", conflicts_with_all = ["sets", "hostname", "shortname"])]
    groups_of: Option<String>,
    /// The names of all sets
    #[arg(long, visible_alias = "groups")]
    sets: bool,
    /// The name of this host
    #[arg(long)]
    hostname: bool,
    /// The name of this host up to its first dot
    #[arg(long)]
    shortname: bool,
}

/// Exit status: there is no such set or host.
const UNKNOWN: u8 = 2;

/// Prints a name on each line.
pub fn run(query: &Query) -> ExitCode {
    let host = host_name();
    if query.hostname || query.shortname {
        let short = host.split('.').next().unwrap_or_default();
        return output::end(output::line(if query.shortname { short } else { &host }));
    }
    let nodes = match find(query.config.as_deref(), &host) {
        Ok(nodes) => nodes,
        Err(why) => {
            if !why.is_empty() {
                eprintln!("Error: {why}");
            }
            return ExitCode::FAILURE;
        }
    };
    let names = if let Some(host) = &query.groups_of {
        nodes.sets_of(host).ok_or(format!("there is no host \"{host}\""))
    } else if query.sets {
        Ok(nodes.sets().collect())
    } else {
        let each = query.what.iter().map(|what| nodes.hosts(what).ok_or_else(|| unknown(&nodes, what)));
        each.collect::<Result<Vec<_>, _>>().map(|found| found.concat())
    };
    match names {
        Ok(names) if names.is_empty() => ExitCode::SUCCESS,
        Ok(names) => output::end(output::line(&names.join("\n"))),
        Err(why) => {
            eprintln!("Error: {why}");
            ExitCode::from(UNKNOWN)
        }
    }
}

fn unknown(nodes: &NodeSets, what: &str) -> String {
    match what.strip_prefix('@') {
        Some(set) => {
            let known: Vec<&str> = nodes.sets().collect();
            let known =
                if known.is_empty() { "there is none".to_owned() } else { format!("there are {}", known.join(", ")) };
            format!("there is no set \"{set}\": {known}")
        }
        None => format!("there is no host \"{what}\": write @{what} for a set of that name"),
    }
}

/// The nodes of a configuration; those of the cluster file if it has none; this host if there is neither.
fn find(config: Option<&Path>, host: &str) -> Result<NodeSets, String> {
    if let Some(path) = config {
        let (parsed, _) = diagnostics::load(path).map_err(|_| String::new())?;
        if !(parsed.config.nodes.is_empty() && parsed.config.hosts.is_empty()) {
            return NodeSets::new(&parsed.config.statements_of_nodes())
                .map_err(|wrong| wrong.into_iter().map(|wrong| wrong.message).collect::<Vec<_>>().join("; "));
        }
    }
    let Some(path) = std::env::var_os(CLUSTER).filter(|path| !path.is_empty()).map(PathBuf::from) else {
        return Ok(NodeSets::of_one(host));
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => NodeSets::parse_cluster(&text).map_err(|wrong| import::cluster_in_words(&path, wrong)),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("Warning: ${CLUSTER} names {}, which does not exist: this host is the only one", path.display());
            Ok(NodeSets::of_one(host))
        }
        Err(error) => Err(format!("{}: cannot be read: {error}", path.display())),
    }
}
