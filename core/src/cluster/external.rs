//! Programs of other nodes, as this node knows them.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::base::{
    ids::{EpochId, InstanceId, Seq},
    time::Millis,
};

/// What separates the name of a program from that of its node: `db@n1`.
pub const AT: char = '@';

/// What is assumed of a program of another node while its state is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Assumption {
    /// That it is down.
    Down,
    /// That it is as it was last seen.
    Keep,
}

/// A program of another node that programs of this node depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// The node; or the group that runs on one node at a time, whichever that is, if `of_group`.
    pub node: Arc<str>,
    /// Whether `node` is the name of such a group.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_group: bool,
    /// The name of the program on that node.
    pub program: Arc<str>,
    /// What is assumed of it when its node is lost: the session of the node has ended.
    pub on_lost: Assumption,
    /// What is assumed of it while this node is cut off from the others.
    pub on_blind: Assumption,
    /// How long a node must have been without a session to be lost: one that opens another session at once is not.
    pub lost_after: Millis,
    /// How long nothing must have been heard of the cluster for this node to be cut off.
    pub blind_after: Millis,
}

impl External {
    /// Where it runs, in words.
    pub fn place(&self) -> String {
        let Self { node, of_group, .. } = self;
        if *of_group { format!("where group {node} runs") } else { format!("on node {node}") }
    }
}

/// Why the state of a program of another node is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnseenReason {
    /// The session of its node has ended.
    Lost,
    /// This node is cut off from the others.
    Blind,
}

impl fmt::Display for UnseenReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost => "its node is not seen",
            Self::Blind => "the cluster cannot be reached",
        })
    }
}

/// The place of a published state in the journal of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteSource {
    /// The id of the journal: that of a node that was installed again is another.
    pub journal: Arc<str>,
    /// The epoch.
    pub epoch: EpochId,
    /// The last event of the program.
    pub seq: Seq,
    /// How often the program has gone down so far, as that journal counts.
    pub falls: u64,
}

impl RemoteSource {
    /// Whether this is an earlier state in the same journal than `other`. States of two journals have no order.
    pub fn is_before(&self, other: &Self) -> bool {
        self.journal == other.journal && (self.epoch, self.seq) < (other.epoch, other.seq)
    }
}

/// What is known of a program of another node besides its state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteRun {
    /// The last state that was used.
    pub source: RemoteSource,
    /// Its run there; 0 before the first.
    pub instance: InstanceId,
    /// Why its state is not known, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unseen: Option<UnseenReason>,
}

/// The name of a program and of its node in the name of an external program.
pub fn split_name(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once(AT)
}
