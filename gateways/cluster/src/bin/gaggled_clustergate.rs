//! The gateway to the other nodes of a cluster.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use gaggled_cluster::{
    administrator::{self, AdminError, Administrator, PublishArgs, WaitArgs},
    daemon_link::{self, Reporter},
    etcd::Credentials,
    gateway::{Gateway, Message},
    roles,
};
use gaggled_core::config::{ClusterConfig, Config};
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
/// command: publish configurations, give orders about nodes and groups, and show the cluster
///
/// Exit status: 1 the configuration cannot be used, the command was not carried out, or a node has not done what it says; 2 the
/// arguments cannot be used.
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

        /// A user who may give orders about nodes and groups. Can be given more than once
        #[arg(long, value_name = "USER", value_delimiter = ',')]
        operator: Vec<String>,
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
    /// Show the members of etcd, the nodes, their configurations and their groups
    Status,
    /// Move a group that runs on one node at a time to another node, and wait until that has taken it
    Move {
        /// The group
        group: String,

        /// The node
        node: String,

        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Let a group that runs on one node at a time go to a level, whichever node runs it
    Tell {
        /// The group
        group: String,

        /// The level
        level: String,

        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Let a node run no group that runs on one node at a time, and wait until others have taken those that it has
    Drain {
        /// The node
        node: String,

        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Let a node that was drained run groups again
    Undrain {
        /// The node
        node: String,
    },
    /// Say that nothing runs on a node any more, so that others need not wait before they take its groups: after the command
    /// `fence` of gaggled.cluster has seen to that, or you have
    Fence {
        /// The node
        node: String,

        /// The node is switched off: do not run the command
        #[arg(long)]
        confirmed: bool,

        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Delete what etcd has of a node that does not come back
    Forget {
        /// The node
        node: String,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Ok((parsed, _)) = diagnostics::load(&arguments.config) else { return ExitCode::FAILURE };
    let settings = &parsed.config.gaggled;
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
        Some(Command::Roles { nodes, publisher, operator }) => {
            let own = || vec![config.node.clone().unwrap_or_else(|| host.clone())];
            let others = !publisher.is_empty() || !operator.is_empty();
            let nodes = if nodes.is_empty() && !others { own() } else { nodes };
            let mut lines = roles::commands(&config.name, &nodes);
            if !publisher.is_empty() {
                lines.extend(roles::publisher_commands(&config.name, &publisher));
            }
            if !operator.is_empty() {
                lines.extend(roles::operator_commands(&config.name, &operator));
            }
            return output::end(output::line(&lines.join("\n")));
        }
        Some(command) => return ask(command, parsed.config, config),
    }
    let urls = match endpoints::of_settings(settings) {
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
fn ask(command: Command, config: Config, cluster: ClusterConfig) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("Error: the runtime cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        let administrator = Box::pin(Administrator::connect(config, cluster)).await?;
        let shown = match command {
            Command::Publish { file, arguments } => return administrator.publish_file(&file, &arguments).await,
            Command::Rollback { revision, arguments } => return administrator.roll_back(revision, &arguments).await,
            Command::Move { group, node, wait } => return administrator.move_group(&group, &node, wait).await,
            Command::Tell { group, level, wait } => return administrator.tell(&group, &level, wait).await,
            Command::Drain { node, wait } => return administrator.drain(&node, wait).await,
            Command::Undrain { node } => return administrator.undrain(&node).await,
            Command::Fence { node, confirmed, wait } => return administrator.fence(&node, confirmed, wait).await,
            Command::Forget { node } => return administrator.forget(&node).await,
            Command::Revisions => administrator::revisions(administrator.known()),
            Command::Status | Command::Roles { .. } => administrator.status().await,
        };
        output::line(&shown).map_err(|error| AdminError::Refused(error.to_string()))
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(AdminError::Shown) => ExitCode::FAILURE,
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
