//! The commands of an operator: they need etcd, and no daemon.

mod orders;
mod publish;
mod status;

use std::sync::Arc;

use gaggled_actors::clock::Clock;
use gaggled_core::config::{ClusterConfig, Config};
use gaggled_tools::common::host::host_name;

pub use self::{orders::WaitArgs, publish::PublishArgs, status::revisions};
use crate::etcd::{Connection, Credentials, EtcdError, publication::Publications};

/// Why a command was not carried out, or not as a whole.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The reasons have been printed.
    #[error("")]
    Shown,
    /// etcd cannot be used.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// Anything else.
    #[error("{0}")]
    Refused(String),
}

/// Carries out the commands of an operator.
#[derive(Debug)]
pub struct Administrator {
    /// The configuration of the node on which the command is given.
    config: Config,
    cluster: ClusterConfig,
    connection: Connection,
    /// What etcd had when the connection was made.
    known: Publications,
    clock: Clock,
}

impl Administrator {
    /// Connects to the first member of etcd that answers, as the configuration says.
    ///
    /// # Errors
    ///
    /// None does; the error is that of the last one.
    pub async fn connect(config: Config, cluster: ClusterConfig) -> Result<Self, AdminError> {
        let credentials = Credentials::read(&cluster)?;
        let node: Arc<str> = cluster.node.clone().unwrap_or_else(host_name).into();
        let mut last = None;
        for url in &cluster.etcd {
            let opened = Connection::open(url, cluster.name.as_str().into(), node.clone(), &credentials).await;
            let asked = match opened {
                Ok(connection) => connection.publications().await.map(|known| (connection, known)),
                Err(error) => Err(error),
            };
            match asked {
                Ok((connection, known)) => {
                    return Ok(Self { config, cluster, connection, known, clock: Clock::real() });
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or_else(|| AdminError::Refused("gaggled.cluster names no etcd".to_owned()), AdminError::Etcd))
    }

    /// What is published, and who has it.
    pub fn known(&self) -> &Publications {
        &self.known
    }
}

/// Who gives the command: the user and the host.
fn who() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
    let user = user.map_or_else(|| nix::unistd::geteuid().to_string(), |user| user.name);
    format!("{user}@{}", host_name())
}

/// Prints a line. If standard output is closed, the publication goes on.
fn say(line: &str) {
    let _ = gaggled_tools::common::output::line(&shown(line));
}

/// A text as a terminal may have it: parts of it come from nodes, which are not trusted with more than their own programs.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}
