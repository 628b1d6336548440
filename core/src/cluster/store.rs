//! What the nodes of a cluster write to the store that they share: the names of its keys and its values.
//!
//! | key | value |
//! |---|---|
//! | `/gaggled/SITE/alive/NODE` | [`Session`], with the lease of the node |
//! | `/gaggled/SITE/state/NODE/PROGRAM` | [`StateValue`], without a lease: it stays when its node is gone |
//! | `/gaggled/SITE/claim/GROUP` | [`Claim`], without a lease: it is only ever overwritten |
//! | `/gaggled/SITE/order/drain/NODE` | [`Order`](super::orders::Order): the node runs no such group |
//! | `/gaggled/SITE/order/move/GROUP` | [`Order`](super::orders::Order): the group moves to the node `of` |
//! | `/gaggled/SITE/order/level/GROUP` | [`Order`](super::orders::Order): the group goes to the level `of`, whichever node runs it |
//! | `/gaggled/SITE/order/fence/NODE` | [`Order`](super::orders::Order): nothing of the session `of` of the node runs any more |
//! | `/gaggled/SITE/config/current` | [`Pointer`]: the revision of the configuration that all nodes are to have |
//! | `/gaggled/SITE/config/canary/NODE` | [`Pointer`]: one that this node is to try |
//! | `/gaggled/SITE/config/revision/N/pointer` | [`Pointer`]: the same, of each revision that is kept |
//! | `/gaggled/SITE/config/revision/N/PART` | a part of its text |
//! | `/gaggled/SITE/applied/NODE` | [`Applied`]: the revision that the node has |
//!
//! Values are JSON with a version. Fields that are not known are ignored.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::published::PublishedState;
use crate::base::{
    ids::Level,
    time::{Millis, WallTime},
};

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
    /// The claim on a group that runs on one node at a time.
    Claim {
        /// The group.
        group: Arc<str>,
    },
    /// The order that a node is to run no group that runs on one node at a time.
    Drain {
        /// The node.
        node: Arc<str>,
    },
    /// The order that a group is to move.
    Move {
        /// The group.
        group: Arc<str>,
    },
    /// The order that a group is to go to a level.
    Level {
        /// The group.
        group: Arc<str>,
    },
    /// The word of an operator that nothing of a session of a node runs any more.
    Fence {
        /// The node.
        node: Arc<str>,
    },
    /// The published configuration.
    Current,
    /// A configuration that a node is to try.
    Canary {
        /// The node.
        node: Arc<str>,
    },
    /// A part of the text of a configuration.
    Part {
        /// Its revision.
        revision: u64,
        /// The number of the part, from 0.
        part: u32,
    },
    /// What is said of a configuration.
    Description {
        /// Its revision.
        revision: u64,
    },
    /// The configuration that a node has.
    Applied {
        /// The node.
        node: Arc<str>,
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

    /// What the keys of all states begin with.
    pub fn all_states(site: &str) -> String {
        format!("/gaggled/{site}/state/")
    }

    /// What the keys of the states of a node begin with.
    pub fn states_of(site: &str, node: &str) -> String {
        format!("/gaggled/{site}/state/{node}/")
    }

    /// What the keys of all claims begin with.
    pub fn claims(site: &str) -> String {
        format!("/gaggled/{site}/claim/")
    }

    /// What the keys of all orders begin with.
    pub fn orders(site: &str) -> String {
        format!("/gaggled/{site}/order/")
    }

    /// What the keys of everything begin with that is published to nodes.
    pub fn configurations(site: &str) -> String {
        format!("/gaggled/{site}/config/")
    }

    /// What the keys of all canaries begin with.
    pub fn canaries(site: &str) -> String {
        format!("/gaggled/{site}/config/canary/")
    }

    /// What the keys of all texts begin with.
    pub fn revisions(site: &str) -> String {
        format!("/gaggled/{site}/config/revision/")
    }

    /// What the keys of the text of a revision begin with.
    pub fn texts(site: &str, revision: u64) -> String {
        format!("/gaggled/{site}/config/revision/{revision}/")
    }

    /// What the keys begin with that say which configuration each node has.
    pub fn all_applied(site: &str) -> String {
        format!("/gaggled/{site}/applied/")
    }

    /// The key in the store.
    pub fn path(&self, site: &str) -> String {
        match self {
            Self::Alive { node } => format!("/gaggled/{site}/alive/{node}"),
            Self::State { node, program } => format!("/gaggled/{site}/state/{node}/{program}"),
            Self::Claim { group } => format!("/gaggled/{site}/claim/{group}"),
            Self::Drain { node } => format!("/gaggled/{site}/order/drain/{node}"),
            Self::Move { group } => format!("/gaggled/{site}/order/move/{group}"),
            Self::Level { group } => format!("/gaggled/{site}/order/level/{group}"),
            Self::Fence { node } => format!("/gaggled/{site}/order/fence/{node}"),
            Self::Current => format!("/gaggled/{site}/config/current"),
            Self::Canary { node } => format!("/gaggled/{site}/config/canary/{node}"),
            Self::Part { revision, part } => format!("/gaggled/{site}/config/revision/{revision}/{part}"),
            Self::Description { revision } => format!("/gaggled/{site}/config/revision/{revision}/pointer"),
            Self::Applied { node } => format!("/gaggled/{site}/applied/{node}"),
        }
    }

    /// Reads a key of this cluster; `None` if it is another, or one that a later version has written.
    pub fn parse(site: &str, path: &str) -> Option<Self> {
        let mut parts = path.strip_prefix(&Self::prefix(site))?.split('/');
        match (parts.next()?, parts.next()?, parts.next(), parts.next()) {
            ("alive", node, None, None) => Some(Self::Alive { node: node.into() }),
            ("state", node, Some(program), None) => Some(Self::State { node: node.into(), program: program.into() }),
            ("claim", group, None, None) => Some(Self::Claim { group: group.into() }),
            ("order", "drain", Some(node), None) => Some(Self::Drain { node: node.into() }),
            ("order", "move", Some(group), None) => Some(Self::Move { group: group.into() }),
            ("order", "level", Some(group), None) => Some(Self::Level { group: group.into() }),
            ("order", "fence", Some(node), None) => Some(Self::Fence { node: node.into() }),
            ("config", "current", None, None) => Some(Self::Current),
            ("config", "canary", Some(node), None) => Some(Self::Canary { node: node.into() }),
            ("config", "revision", Some(revision), Some("pointer")) => {
                Some(Self::Description { revision: revision.parse().ok()? })
            }
            ("config", "revision", Some(revision), Some(part)) => {
                Some(Self::Part { revision: revision.parse().ok()?, part: part.parse().ok()? })
            }
            ("applied", node, None, None) => Some(Self::Applied { node: node.into() }),
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

/// Who runs a group that runs on one node at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The version of this value.
    pub v: u32,
    /// The node.
    pub node: Arc<str>,
    /// Its session when it was written.
    pub session: Arc<str>,
    /// The revision that made the claim; 0 stands for the one that has written this value.
    pub token: u64,
    /// Which attempt of the node it was.
    pub attempt: Arc<str>,
    /// Whether nothing of the group runs there any more, so that any node may claim it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub released: bool,
    /// The level to which an operator has told the group to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// The last order about its level that was carried out, by its revision.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub level_order: u64,
    /// How long others have to wait, after the session of the node is gone, until nothing of the group can run there.
    #[serde(rename = "takeover_after_ms")]
    pub takeover_after: Millis,
    /// Why it was released.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

impl Claim {
    /// A new claim.
    pub fn new(node: Arc<str>, session: Arc<str>, attempt: Arc<str>) -> Self {
        let (level, takeover_after, why) = (None, Millis(0), String::new());
        let (token, level_order, released) = (0, 0, false);
        Self { v: VERSION, node, session, token, attempt, released, level, level_order, takeover_after, why }
    }

    /// One that this version cannot read: another node holds the group, for as long as it is there.
    pub fn unreadable() -> Self {
        Self::new("?".into(), "?".into(), "?".into())
    }

    /// Whether it is one that this version cannot read.
    pub fn is_unreadable(&self) -> bool {
        *self.session == *"?"
    }

    /// Its token, if this revision has written it.
    pub fn token_at(&self, revision: u64) -> u64 {
        if self.token == 0 { revision } else { self.token }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// Which configuration is published. Its text is in keys of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pointer {
    /// The version of this value.
    pub v: u32,
    /// The number of the revision: each publication has a larger one.
    pub revision: u64,
    /// The SHA-256 of its text, in hexadecimal digits.
    pub sha256: String,
    /// In how many parts the text is.
    pub parts: u32,
    /// How long it is, in bytes.
    pub bytes: u64,
    /// Who has published it.
    pub by: String,
    /// When, by the clock of the publisher.
    pub time: WallTime,
    /// What the publisher says about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

impl Pointer {
    /// A pointer to a text, without who has published it, and when.
    pub fn new(revision: u64, sha256: String, parts: u32, bytes: u64) -> Self {
        let (by, time, note) = (String::new(), WallTime::default(), String::new());
        Self { v: VERSION, revision, sha256, parts, bytes, by, time, note }
    }
}

/// The configuration that a node has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The version of this value.
    pub v: u32,
    /// The revision that is in force; 0 if none has been yet.
    pub revision: u64,
    /// The one that the node does not take, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedRevision>,
}

/// A configuration that a node does not take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedRevision {
    /// Its revision.
    pub revision: u64,
    /// Why.
    pub why: String,
}

impl Applied {
    /// The longest reason that is kept, in bytes.
    const WHY_MAX: usize = 4096;

    /// The value for a node with this revision.
    pub fn new(revision: u64, refused: Option<(u64, &str)>) -> Self {
        let short = |why: &str| {
            why.chars()
                .scan(0, |length, c| {
                    *length += c.len_utf8();
                    (*length <= Self::WHY_MAX).then_some(c)
                })
                .collect()
        };
        let refused = refused.map(|(revision, why)| RefusedRevision { revision, why: short(why) });
        Self { v: VERSION, revision, refused }
    }
}
