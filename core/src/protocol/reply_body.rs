//! The bodies of replies, for the server and its clients.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::GroupView;
use crate::base::{
    ids::{EpochId, Seq},
    time::WallTime,
};

/// The body for a command or a `wait` request: the programs and groups that it waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandBody {
    /// The epoch.
    pub epoch: EpochId,
    /// The last event.
    pub seq: Seq,
    /// The programs; only if the sender waited.
    pub programs: Vec<String>,
    /// The groups; only if the sender waited.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
}

/// The body for `status`: the state of gaggled itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InfoBody {
    /// The version of gaggled.
    pub version: String,
    /// The process id of the daemon.
    pub pid: u32,
    /// The path of the running binary, followed by " (deleted)" if the file no longer exists.
    pub binary: String,
    /// The epoch.
    pub epoch: EpochId,
    /// The last event.
    pub seq: Seq,
    /// For how long this daemon has run, in milliseconds.
    pub uptime_ms: u64,
    /// How many programs there are.
    pub programs: usize,
    /// How many of them are up.
    pub up: usize,
    /// Whether a shutdown is under way.
    pub shutting_down: bool,
    /// The groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupView>,
    /// Where events are published.
    pub eventurl: String,
    /// Where requests are answered.
    pub controlurl: String,
    /// The state directory.
    pub state_directory: String,
    /// A name for the journal: another one for a gaggled that was installed again.
    #[serde(default)]
    pub journal: String,
    /// The revision of the published configuration that is in force, 0 before the first; absent if the programs come from a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<u64>,
}

/// The body for `events`: one page.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EventsBody {
    /// The epoch.
    pub epoch: EpochId,
    /// Whether some of the requested events are no longer kept, so that the client needs a snapshot.
    pub gap: bool,
    /// The first event that is kept.
    pub first: Seq,
    /// The last event.
    pub last: Seq,
    /// The events, as on the bus.
    pub events: Vec<Box<RawValue>>,
    /// What to ask for next, if there are more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Seq>,
    /// The epoch of `next`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_epoch: Option<EpochId>,
}

/// The body for `why`: the chains of events that led to the state of a program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WhyBody {
    /// The program.
    pub program: String,
    /// Its state, as in a dump.
    pub state: Box<RawValue>,
    /// The chains, the latest first; in each the last event first.
    pub chains: Vec<Vec<WhyStep>>,
}

/// An event in a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyStep {
    /// The event.
    pub seq: Seq,
    /// When it was committed.
    pub time: WallTime,
    /// Its name.
    pub event: String,
    /// The event in words.
    pub words: String,
    /// In the last step: where the chain of causes ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
}
