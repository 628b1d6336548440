//! The public interface: what goes over the channels, as JSON.
//!
//! `contrib/protocol.md` describes it for writers of clients. It has a version, and is never changed in silence.

mod event;
mod request;
mod state;

pub use self::{
    event::{Beat, EventText, Names, decode_event, encode_applied, encode_event, encode_message, encode_past},
    request::{Action, ErrorCode, Goal, Moment, Reply, ReplyError, Request},
    state::{DependencyView, Dump, GroupView, GroupWord, ProgramView, View, describe},
};

/// The version of everything that goes over the channels.
pub const VERSION: u32 = 1;

/// The topic of the heartbeat.
pub const BEAT_TOPIC: &str = "beat";

/// The beginning of the topic of every event; the name of the program follows, if it concerns one.
pub const EVENT_TOPIC: &str = "event/";
