//! What the control actor is sent and sends, and what it works with.

use std::sync::{Arc, atomic::AtomicU64};

use actix::{Addr, Message};
use gaggled_core::{
    base::time::Millis,
    control::{Proposal, Target},
    event::{Cause, Handover},
    journal::Refusal,
    protocol::{Reply, ReplyError, Request, access::Peer},
    state::State,
};

use crate::{
    clock::Clock,
    journal::{JournalActor, reader::JournalReader, writer_handle::JournalWriterHandle},
};

/// Sends the answer to a request. It may be called at any time, from any thread, once.
pub type ReplyFn = Box<dyn FnOnce(Reply) + Send>;

/// A request.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ControlRequest {
    /// Who asks.
    pub peer: Peer,
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub answer: ReplyFn,
}

/// What a command proposed was refused.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ProposalRefused {
    /// The cause that the proposal had.
    pub cause: Cause,
    /// Why.
    pub refusal: Refusal,
}

/// Everything has stopped. When this message has been handled, all earlier requests have been answered.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct DrainReplies;

/// What the daemon says of itself.
#[derive(Clone, Debug)]
pub struct DaemonInfo {
    /// The version of gaggled.
    pub version: &'static str,
    /// Its process id.
    pub pid: u32,
    /// The path of the binary that runs; with " (deleted)" after it if that is gone.
    pub binary: String,
    /// A name for the journal that may be shown.
    pub journal: String,
    /// Where events are published.
    pub eventurl: String,
    /// Where requests are answered.
    pub controlurl: String,
    /// The directory of the journal.
    pub state: String,
    /// The revision of the published configuration that is in force, if the programs come from there. It changes when another
    /// revision has the same text.
    pub published: Option<Arc<AtomicU64>>,
}

/// A request that concerns gaggled as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandoverRequest {
    /// Only say what another configuration would change.
    Plan {
        /// The file, if it is not the one that gaggled was started with.
        file: Option<String>,
    },
    /// Take another configuration.
    Reload {
        /// The file, if it is not the one that gaggled was started with.
        file: Option<String>,
    },
    /// Take a part of the published configuration, and load it with the last one.
    Configure {
        /// Its revision.
        revision: u64,
        /// The number of this part, from 0.
        part: u32,
        /// How many there are.
        parts: u32,
        /// The text of this part.
        text: String,
    },
    /// Hand over to another version.
    Upgrade {
        /// The binary, if it is not the one that gaggled was started from.
        binary: Option<String>,
    },
}

/// The outcome of preparing a handover.
#[derive(Clone, Debug)]
pub struct HandoverPrepared {
    /// The body of the reply.
    pub body: serde_json::Value,
    /// The handover to start, for which everything has been prepared; `None` if this daemon goes on.
    pub handover: Option<Handover>,
}

/// Prepares a plan or a handover, given the state. It may block.
pub type PrepareHandover = Arc<dyn Fn(HandoverRequest, &State) -> Result<HandoverPrepared, ReplyError> + Send + Sync>;

/// What the actor works with besides the state.
#[derive(Clone)]
pub struct ControlServices {
    /// The time.
    pub clock: Clock,
    /// Where commands are proposed.
    pub journal: Addr<JournalActor>,
    /// The journal writer: a command is answered when its events are written.
    pub file: JournalWriterHandle,
    /// Reads events that are no longer in memory.
    pub reader: JournalReader,
    /// Prepares plans and handovers.
    pub prepare_handover: PrepareHandover,
    /// What gaggled says of itself.
    pub info: DaemonInfo,
}

/// A request that is answered later.
pub(super) struct RequestContext {
    pub peer: Peer,
    pub id: String,
    /// Identifies a request that is sent again; empty if it may be carried out twice.
    pub key: String,
    /// Whether it is a command and not a query.
    pub is_command: bool,
}

/// How a request is answered.
pub(super) enum Dispatch {
    /// It is answered at once.
    Reply(Reply),
    /// It is answered when programs have reached a state.
    Wait(Target, Millis),
    /// It is answered when events are committed.
    Propose(Proposal),
    /// Another thread answers it, because that may block.
    Offload(Job),
}

/// The work for a request, called with the id of the request.
pub(super) type Job = Box<dyn FnOnce(&str) -> JobResult + Send>;

/// The result of a job.
pub(super) enum JobResult {
    Reply(Reply),
    /// A handover has been prepared and is to start; the value is the body of the reply.
    Handover(Handover, serde_json::Value),
}

/// A job is done.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct JobFinished {
    pub asked: RequestContext,
    pub concluded: JobResult,
    pub answer: ReplyFn,
}
