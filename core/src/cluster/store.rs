//! What the nodes of a cluster write to the store that they share: the names of its keys and its values.
//!
//! | key | value |
//! |---|---|
//! | `/gaggled/SITE/alive/NODE` | [`Session`], with the lease of the node |
//! | `/gaggled/SITE/state/NODE/PROGRAM` | [`StateValue`], without a lease: it stays when its node is gone |
//!
//! Values are JSON with a version. Fields that are not known are ignored.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::published::PublishedState;

/// The version of the values.
const VERSION: u32 = 1;

/// A key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The session of a node.
    Alive {
        /// The node.
        node: Arc<str>,
    },
    /// The state of an exported program.
    State {
        /// Its node.
        node: Arc<str>,
        /// The program.
        program: Arc<str>,
    },
}

impl Key {
    /// What all keys of a cluster begin with.
    pub fn prefix(site: &str) -> String {
        format!("/gaggled/{site}/")
    }

    /// What the keys of all sessions begin with.
    pub fn sessions(site: &str) -> String {
        format!("/gaggled/{site}/alive/")
    }

    /// What the keys of the states of a node begin with.
    pub fn states_of(site: &str, node: &str) -> String {
        format!("/gaggled/{site}/state/{node}/")
    }

    /// The key in the store.
    pub fn path(&self, site: &str) -> String {
        match self {
            Self::Alive { node } => format!("/gaggled/{site}/alive/{node}"),
            Self::State { node, program } => format!("/gaggled/{site}/state/{node}/{program}"),
        }
    }

    /// Reads a key of this cluster; `None` if it is another, or one that a later version has written.
    pub fn parse(site: &str, path: &str) -> Option<Self> {
        let mut parts = path.strip_prefix(&Self::prefix(site))?.split('/');
        match (parts.next()?, parts.next()?, parts.next(), parts.next()) {
            ("alive", node, None, None) => Some(Self::Alive { node: node.into() }),
            ("state", node, Some(program), None) => Some(Self::State { node: node.into(), program: program.into() }),
            _ => None,
        }
    }
}

/// The session of a node: it exists as long as its lease is renewed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The version of this value.
    pub v: u32,
    /// Its id, which no other session has.
    pub session: Arc<str>,
    /// The id of the journal of the node.
    pub journal: Arc<str>,
    /// The name of its host.
    pub host: String,
    /// The version of gaggled.
    pub version: String,
}

impl Session {
    /// The session of a node with this journal.
    pub fn new(session: Arc<str>, journal: Arc<str>, host: &str, version: &str) -> Self {
        Self { v: VERSION, session, journal, host: host.to_owned(), version: version.to_owned() }
    }
}

/// The last state of an exported program, and the session in which it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateValue {
    /// The version of this value.
    pub v: u32,
    /// The session.
    pub session: Arc<str>,
    /// The state.
    #[serde(flatten)]
    pub state: Arc<PublishedState>,
}

impl StateValue {
    /// The value for a state.
    pub fn new(session: Arc<str>, state: Arc<PublishedState>) -> Self {
        Self { v: VERSION, session, state }
    }
}
