//! The gateway to the other nodes of a cluster.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use gaggled_cluster::{
    daemon_link::{self, Reporter},
    etcd::Credentials,
    gateway::{Gateway, Message},
    roles,
};
use gaggled_core::config::ClusterConfig;
use gaggled_tools::{
    VERSION,
    common::{
        diagnostics,
        endpoints::{self, Urls},
        gateway_log,
        host::host_name,
        output,
    },
};
use slog::Logger;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc::unbounded_channel,
};

/// Connect a running gaggled with the other nodes of its cluster, as the configuration says. gaggled runs this itself
///
/// Exit status: 1 the configuration cannot be used; 2 the arguments cannot be used.
#[derive(Parser)]
#[command(name = "gaggled_clustergate", version = VERSION)]
struct Arguments {
    /// The configuration, with a section gaggled.cluster
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,

    /// Also log what changes nothing
    #[arg(short, long)]
    verbose: bool,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Print the commands of etcdctl that make the users and roles of nodes, for an etcd with authentication
    Roles {
        /// The nodes; this one if none is given
        nodes: Vec<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Ok((parsed, _)) = diagnostics::load(&arguments.config) else { return ExitCode::FAILURE };
    let settings = parsed.config.gaggled;
    let fail = |why: String| {
        eprintln!("Error: {}: {why}", arguments.config.display());
        ExitCode::FAILURE
    };
    let Some(config) = settings.cluster.clone() else {
        return fail("there is no section gaggled.cluster: add one".to_owned());
    };
    let host = host_name();
    if let Some(Command::Roles { nodes }) = arguments.command {
        let own = || vec![config.node.clone().unwrap_or_else(|| host.clone())];
        let nodes = if nodes.is_empty() { own() } else { nodes };
        return output::end(output::line(&roles::commands(&config.name, &nodes).join("\n")));
    }
    let urls = match endpoints::of_settings(&settings) {
        Ok(urls) => urls,
        Err(error) => return fail(error.to_string()),
    };
    let logger = gateway_log::logger(arguments.verbose);
    match run(config, host, &urls, logger) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error),
    }
}

fn run(config: ClusterConfig, host: String, urls: &Urls, logger: Logger) -> Result<(), String> {
    let credentials = Credentials::read(&config).map_err(|error| error.to_string())?;
    let (sender, messages) = unbounded_channel::<Message>();
    let reporter = Reporter::start(urls, sender.clone()).map_err(|error| error.to_string())?;
    daemon_link::follow(urls, sender.clone()).map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("the runtime cannot be started: {error}"))?;
    let gateway = Gateway::new(config, host, credentials, (reporter, sender.clone()), logger);
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
        tokio::spawn(async move {
            terminated.recv().await;
            let _ = sender.send(Message::Terminated);
        });
        gateway.run(messages).await;
        Ok(())
    })
}
