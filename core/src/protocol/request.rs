//! Requests to the control channel, and its replies: one JSON each.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::VERSION;
use crate::{
    base::{
        ids::{EpochId, Seq},
        time::{Millis, WallTime},
    },
    cluster::Observation,
    protocol::access::Role,
};

/// Programs and groups that a command is for, and whether its sender waits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Names of programs or groups, or patterns such as `web-*`; everything if there is none.
    #[serde(default)]
    pub programs: Vec<String>,
    /// Whether to answer when it is done, rather than when it is accepted.
    #[serde(default)]
    pub wait: bool,
    /// How long to wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<Millis>,
}

/// How long a command waits if its sender does not say.
pub const DEFAULT_TIMEOUT: Millis = Millis(30_000);

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The version of the protocol.
    #[serde(default = "version")]
    pub v: u32,
    /// The client's id for it. A request with an id that was seen before is answered again, but not executed again.
    #[serde(default)]
    pub id: String,
    /// What is asked.
    #[serde(flatten)]
    pub action: Action,
}

fn version() -> u32 {
    VERSION
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Action {
    /// Start programs.
    Up(Selection),
    /// Stop programs.
    Down(Selection),
    /// Stop and start programs.
    Restart(Selection),
    /// Move a group to a level.
    Tell {
        /// Which.
        group: String,
        /// The level; `restart` restarts it.
        level: String,
        /// Whether to answer when the group has reached it, rather than when the request is accepted.
        #[serde(default)]
        wait: bool,
        /// How long to wait.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<Millis>,
    },
    /// Send a signal to programs.
    Signal {
        /// Which.
        programs: Vec<String>,
        /// A name or a number.
        signal: String,
    },
    /// Answers when programs have reached a state.
    Wait {
        /// Which.
        programs: Vec<String>,
        /// What to wait for.
        #[serde(default, rename = "for")]
        goal: WaitState,
        /// For how long.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<Millis>,
    },
    /// The state of programs.
    Dump {
        /// Which; all if there is none.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        programs: Vec<String>,
        /// Where to begin, counted in programs.
        #[serde(default)]
        from: usize,
        /// How many at most.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<usize>,
        /// The moment of the past to show, without pages; the present if it is not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<PointInTime>,
    },
    /// The events that led to the state of a program.
    Why {
        /// Which.
        program: String,
        /// The moment of the past to explain; the present if it is not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<PointInTime>,
    },
    /// Events after a number.
    Events {
        /// The run of the daemon that the number belongs to; any if it is not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        epoch: Option<EpochId>,
        /// The last event that the client knows; 0 for all that are kept.
        #[serde(default)]
        since: Seq,
        /// How many at most.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<usize>,
        /// Only those of one program.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        program: Option<String>,
        /// Only those from this time on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<WallTime>,
        /// Only those up to this time.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<WallTime>,
    },
    /// What the cluster gateway sees of other nodes.
    Observe {
        /// What it sees, in the order in which it saw it.
        observations: Vec<Observation>,
    },
    /// The whole state, for followers that continue from it.
    Snapshot,
    /// The state of gaggled itself.
    Status,
    /// What another configuration would change.
    Plan {
        /// The file, as gaggled would read it; the one it was started with if this is not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<String>,
    },
    /// Load another configuration.
    Reload {
        /// The file, as for the plan.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<String>,
    },
    /// Load the configuration that the cluster has published, once its last part is there.
    Configure {
        /// Its revision.
        revision: u64,
        /// The number of this part, from 0: they are sent in order.
        part: u32,
        /// How many parts there are.
        parts: u32,
        /// The text of this part.
        text: String,
    },
    /// Hand over to another version of gaggled.
    Upgrade {
        /// The binary; if it is not given, the one at the path that this gaggled was started from.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        binary: Option<String>,
    },
    /// Stop all programs, and gaggled.
    Shutdown {
        /// Whether to answer when everything has stopped, rather than when it is accepted.
        #[serde(default)]
        wait: bool,
        /// How long to wait.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<Millis>,
    },
}

/// A moment of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PointInTime {
    /// Just after this event.
    Seq(Seq),
    /// At this time.
    Time(WallTime),
}

/// What to wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitState {
    /// That it is up.
    #[default]
    Up,
    /// That it has no process.
    Down,
}

/// A reply.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reply {
    /// The version of the protocol.
    pub v: u32,
    /// The id of the request.
    pub id: String,
    /// Whether it was done.
    pub ok: bool,
    /// The requested data, as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Box<RawValue>>,
    /// Why it was not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ReplyError>,
    /// `false` if the journal could not be written: the command is forgotten if gaggled dies before it can be written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durable: Option<bool>,
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyError {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
}

/// Why a request was not done, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is not JSON, or not a known request.
    BadRequest,
    /// The version of the protocol is not supported.
    BadVersion,
    /// There is no such program.
    NoSuchProgram,
    /// There is no such group.
    NoSuchGroup,
    /// The group has no such level.
    NoSuchLevel,
    /// The role of the peer does not permit the request.
    Forbidden,
    /// Everything is being stopped.
    ShuttingDown,
    /// The program did not reach the state.
    Failed,
    /// The program did not reach the state in time.
    TimedOut,
    /// There are too many requests at once.
    Busy,
    /// The program runs on another node.
    RunsElsewhere,
}

impl Request {
    /// A request of this version.
    pub fn new(id: impl Into<String>, action: Action) -> Self {
        Self { v: VERSION, id: id.into(), action }
    }

    /// Reads a request.
    pub fn decode(text: &[u8]) -> Result<Self, ReplyError> {
        let wrong = |message: String| ReplyError { code: ErrorCode::BadRequest, message };
        let request: Self =
            serde_json::from_slice(text).map_err(|why| wrong(format!("request is not understood: {why}")))?;
        if request.v != VERSION {
            let message = format!("request has version {}, this gaggled speaks version {VERSION}", request.v);
            return Err(ReplyError { code: ErrorCode::BadVersion, message });
        }
        Ok(request)
    }
}

impl Reply {
    /// A reply that it was done.
    pub fn done<T: Serialize>(id: &str, body: &T) -> Self {
        let body = serde_json::value::to_raw_value(body).ok();
        Self { v: VERSION, id: id.to_owned(), ok: true, body, error: None, durable: None }
    }

    /// A reply that it was not done.
    pub fn refused(id: &str, code: ErrorCode, message: impl Into<String>) -> Self {
        let error = Some(ReplyError { code, message: message.into() });
        Self { v: VERSION, id: id.to_owned(), ok: false, body: None, error, durable: None }
    }

    /// The reply as it goes over the channel.
    pub fn encode(&self) -> String {
        // Everything but the body is short: a large answer is written without growing its buffer.
        const ENVELOPE: usize = 512;
        let body = self.body.as_ref().map_or(0, |body| body.get().len());
        let mut text = Vec::with_capacity(body + ENVELOPE);
        match serde_json::to_writer(&mut text, self) {
            Ok(()) => String::from_utf8(text).unwrap_or_default(),
            Err(_) => String::new(),
        }
    }
}

impl Action {
    /// The least role that may send this request.
    pub fn role(&self) -> Role {
        match self {
            Self::Dump { .. }
            | Self::Why { .. }
            | Self::Events { .. }
            | Self::Snapshot
            | Self::Status
            | Self::Wait { .. } => Role::Observe,
            Self::Observe { .. } | Self::Configure { .. } => Role::Gateway,
            Self::Up(_) | Self::Down(_) | Self::Restart(_) | Self::Tell { .. } | Self::Signal { .. } => Role::Operate,
            Self::Plan { .. } | Self::Reload { .. } | Self::Upgrade { .. } | Self::Shutdown { .. } => Role::Admin,
        }
    }
}
