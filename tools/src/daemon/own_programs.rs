//! The programs that gaggled adds to a configuration: the logger, the mail gate and the cluster gateway.

use std::path::{Path, PathBuf};

use gaggled_actors::spec;
use gaggled_core::{
    base::time::Millis,
    config::{
        CLUSTERGATE, Config, DependsConfig, Diagnostic, KEEPER, LOGGER, ProgramConfig, SMTPGATE, SpanIndex,
        log_policy::LogRoute,
    },
    graph::Backoff,
};

use crate::{common::endpoints, logger};

/// The longest pause between two starts of the keeper: without it a group is not safe from a gaggled that hangs.
const KEEPER_BACKOFF: Millis = Millis(1000);

/// The binary of the cluster gateway.
const CLUSTER_BINARY: &str = "gaggled_clustergate";

/// Adds these programs, and returns where the output of each program goes. `path` is the file of the configuration, and
/// `state` the state directory if it is not the one that the configuration names.
pub fn add(config: &mut Config, path: &Path, state: Option<&Path>) -> Vec<LogRoute> {
    add_gate(config, path);
    add_cluster_gate(config, path);
    // A missing state directory is reported when the journal is opened.
    let state = state.map(Path::to_owned).or_else(|| endpoints::state_directory(&config.gaggled).ok());
    let Some(state) = state else { return Vec::new() };
    add_keeper(config, &state);
    add_logger(config, &state)
}

/// Whether this is the name of a program that gaggled has added.
pub fn is_own(config: &Config, name: &str) -> bool {
    name == LOGGER && config.needs_logger()
        || name == CLUSTERGATE && config.gaggled.cluster.is_some()
        || name == KEEPER && needs_keeper(config)
        || name == SMTPGATE && config.gaggled.smtpgate.as_ref().is_some_and(|gate| gate.auto)
}

/// Adds the logger, which writes logs that are rotated or prefixed, and makes every program that writes to it depend on
/// it. It gets a fingerprint of the list of logs as an argument, so that a change of the list restarts it.
fn add_logger(config: &mut Config, state: &Path) -> Vec<LogRoute> {
    let mut log_routes = spec::log_routes(config, &logger::pipes(state));
    if !config.needs_logger() {
        return log_routes;
    }
    for (name, program) in &mut config.programs.0 {
        if log_routes.iter().any(|outlet| outlet.program == *name && outlet.pipe.is_some()) {
            program.depends.0.push((LOGGER.to_owned(), DependsConfig::default()));
        }
    }
    let argv = vec!["logger".to_owned(), state.display().to_string(), logger::fingerprint(&log_routes)];
    let program = ProgramConfig { command: Some(own_binary()), argv, ..ProgramConfig::default() };
    config.programs.0.push((LOGGER.to_owned(), program));
    log_routes.push(LogRoute { program: LOGGER.to_owned(), file: None, pipe: None, rotate: None });
    log_routes
}

/// The path of this binary.
fn own_binary() -> String {
    let own = std::env::current_exe().map_or_else(|_| "gaggled".to_owned(), |own| own.display().to_string());
    own.trim_end_matches(" (deleted)").to_owned()
}

/// Whether there are groups that run on one node at a time.
fn needs_keeper(config: &Config) -> bool {
    config.gaggled.cluster.is_some() && !config.shared_groups().is_empty()
}

/// Adds the keeper, which kills what gaggled cannot stop in time.
fn add_keeper(config: &mut Config, state: &Path) {
    let Some(urls) = endpoints::of_settings(&config.gaggled).ok().filter(|_| needs_keeper(config)) else { return };
    let backoff = Backoff { max: KEEPER_BACKOFF, ..Backoff::default() };
    let argv = ["keeper", &state.display().to_string(), &urls.event, &urls.control].map(str::to_owned).to_vec();
    let program =
        ProgramConfig { command: Some(own_binary()), argv, backoff: Some(backoff), ..ProgramConfig::default() };
    config.programs.0.push((KEEPER.to_owned(), program));
}

/// Adds the program that `smtpgate: (auto: true)` asks for.
fn add_gate(config: &mut Config, path: &Path) {
    if !config.gaggled.smtpgate.as_ref().is_some_and(|gate| gate.auto) {
        return;
    }
    config.programs.0.push((SMTPGATE.to_owned(), gateway("gaggled_smtpgate", path)));
}

/// Adds the program that a section `cluster` asks for.
fn add_cluster_gate(config: &mut Config, path: &Path) {
    let Some(cluster) = &config.gaggled.cluster else { return };
    // A session has to be renewed before it ends, so the starts of the gateway are not spaced much.
    let backoff = Backoff { max: cluster.session().half(), ..Backoff::default() };
    let program = ProgramConfig { user: cluster.user.clone(), backoff: Some(backoff), ..gateway(CLUSTER_BINARY, path) };
    config.programs.0.push((CLUSTERGATE.to_owned(), program));
}

/// A gateway that reads this configuration: the binary beside gaggled's own, or one in the path.
fn gateway(binary: &str, path: &Path) -> ProgramConfig {
    let command = beside(binary).unwrap_or_else(|| PathBuf::from(binary)).display().to_string();
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string();
    ProgramConfig { command: Some(command), argv: vec!["-c".to_owned(), path], ..ProgramConfig::default() }
}

/// The binary of this name beside gaggled's own.
fn beside(binary: &str) -> Option<PathBuf> {
    std::env::current_exe().ok().map(|own| own.with_file_name(binary)).filter(|gate| gate.is_file())
}

/// The files for TLS that are not there. Whether they can be used is seen when the gateway starts.
pub fn check_cluster_files(config: &Config, locator: &SpanIndex) -> Vec<Diagnostic> {
    let Some(cluster) = &config.gaggled.cluster else { return Vec::new() };
    let files = [("ca", &cluster.ca), ("cert", &cluster.cert), ("key", &cluster.key)];
    let missing = files.into_iter().filter_map(|(field, file)| {
        let file = file.as_ref().filter(|file| !Path::new(file).is_file())?;
        let error = Diagnostic::error(format!("{field} of the cluster is {file}, which is no file here"));
        Some(error.at(locator.find(&["gaggled", "cluster", field])).help("correct the path, or install the file"))
    });
    missing.collect()
}

/// What is wrong if there is a cluster and no gateway to it.
pub fn check_cluster_gate(config: &Config, locator: &SpanIndex, search: &[String]) -> Option<Diagnostic> {
    config.gaggled.cluster.as_ref()?;
    let is_found = beside(CLUSTER_BINARY).is_some()
        || search.iter().any(|directory| Path::new(directory).join(CLUSTER_BINARY).is_file());
    (!is_found).then(|| {
        Diagnostic::error(format!("{CLUSTER_BINARY} is not there, which connects gaggled with a cluster"))
            .at(locator.find(&["gaggled", "cluster"]))
            .help("build it with cargo build --package gaggled_cluster, and install it beside gaggled")
    })
}
