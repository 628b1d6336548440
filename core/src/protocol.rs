//! The public interface: what goes over the channels, as JSON.
//!
//! `contrib/protocol.md` describes it for authors of clients. It is versioned, and never changed without notice.

pub mod access;
mod describe;
mod event;
mod reply_body;
mod request;
mod state;

pub use self::{
    describe::{describe_event, describe_origin},
    event::{
        BusMessage, Heartbeat, Permits, ProgramIndex, decode_event, encode_applied, encode_event,
        encode_event_with_state, encode_message,
    },
    reply_body::{CommandBody, EventsBody, InfoBody, WhyBody, WhyStep},
    request::{Action, DEFAULT_TIMEOUT, ErrorCode, PointInTime, Reply, ReplyError, Request, Selection, WaitState},
    state::{DependencyView, Dump, GroupStatus, GroupView, ProgramView, View, describe},
};

/// The version of everything that goes over the channels.
pub const VERSION: u32 = 1;

/// The topic of the heartbeat.
pub const HEARTBEAT_TOPIC: &str = "heartbeat";

/// The beginning of the topic of every event; the name of the program follows, if it concerns one.
pub const EVENT_TOPIC: &str = "event/";

/// The largest request, in bytes.
pub const REQUEST_MAX: usize = 64 * 1024;
/// A request up to this size is answered, if only with an error; nng closes the connection of a larger one.
pub const ANSWERED_MAX: usize = 1024 * 1024;
