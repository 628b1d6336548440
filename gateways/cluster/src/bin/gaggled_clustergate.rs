//! The gateway to the other nodes of a cluster.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use gaggled_cluster::{
    daemon_link::{self, Reporter},
    etcd::Credentials,
    gateway::{Gateway, Message},
    publisher::{self, PublishArgs, PublishError, Publisher},
    roles,
};
use gaggled_core::config::{ClusterConfig, Settings};
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

/// Connect a running gaggled with the other nodes of its cluster, as the configuration says: gaggled runs this itself. With a
/// command: publish configurations, and show the cluster
///
/// Exit status: 1 the configuration cannot be used, it was not published, or a node does not take it; 2 the arguments cannot be
/// used.
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

        /// A user who may publish configurations. Can be given more than once
        #[arg(long, value_name = "USER", value_delimiter = ',')]
        publisher: Vec<String>,
    },
    /// Publish a configuration to all nodes that have `config: Published`
    Publish {
        /// The file: programs, groups, nodes and hosts, without a section gaggled
        file: PathBuf,

        #[command(flatten)]
        arguments: PublishArgs,
    },
    /// Publish an earlier revision again, as a new one
    Rollback {
        /// The revision; the one before the present one if none is given
        revision: Option<u64>,

        #[command(flatten)]
        arguments: PublishArgs,
    },
    /// List the revisions that can be published again; the present one has a *
    Revisions,
    /// Show the nodes, and which configuration each has
    Status,
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
    match arguments.command {
        None => {}
        Some(Command::Roles { nodes, publisher }) => {
            let own = || vec![config.node.clone().unwrap_or_else(|| host.clone())];
            let nodes = if nodes.is_empty() && publisher.is_empty() { own() } else { nodes };
            let mut lines = roles::commands(&config.name, &nodes);
            if !publisher.is_empty() {
                lines.extend(roles::publisher_commands(&config.name, &publisher));
            }
            return output::end(output::line(&lines.join("\n")));
        }
        Some(command) => return ask(command, settings, &config),
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

/// Carries out a command that needs etcd and no daemon.
fn ask(command: Command, settings: Settings, cluster: &ClusterConfig) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("Error: the runtime cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        let publisher = Box::pin(Publisher::connect(settings, cluster)).await?;
        let shown = match command {
            Command::Publish { file, arguments } => return publisher.publish_file(&file, &arguments).await,
            Command::Rollback { revision, arguments } => return publisher.roll_back(revision, &arguments).await,
            Command::Revisions => publisher::revisions(publisher.known()),
            Command::Status | Command::Roles { .. } => publisher::status(&cluster.name, publisher.known()),
        };
        output::line(&shown).map_err(|error| PublishError::Refused(error.to_string()))
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(PublishError::Shown) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: ClusterConfig, host: String, urls: &Urls, logger: Logger) -> Result<(), String> {
    let credentials = Credentials::read(&config).map_err(|error| error.to_string())?;
    let (sender, messages) = unbounded_channel::<Message>();
    let reporter = Reporter::start(urls, sender.clone()).map_err(|error| error.to_string())?;
    daemon_link::follow(urls, sender.clone()).map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("the runtime cannot be started: {error}"))?;
    let gateway = Gateway::new(config, host, credentials, (urls.clone(), reporter, sender.clone()), logger);
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
        tokio::spawn(async move {
            terminated.recv().await;
            let _ = sender.send(Message::Terminated);
        });
        Box::pin(gateway.run(messages)).await;
        Ok(())
    })
}
