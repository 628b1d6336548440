//! The messages to the writer thread of the journal.

use std::sync::Arc;

use crossbeam_channel::Sender;
use gaggled_core::{
    base::time::Millis,
    event::{Envelope, SystemEvent},
    journal::segment::{ConfigSource, SegmentHeader},
    state::State,
};
use tokio::sync::oneshot;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// In bytes, of all segments together.
    pub bytes: u64,
    /// How old a segment may become.
    pub age: Millis,
}

impl Retention {
    /// The size at which a new segment is begun.
    pub(super) fn segment(self) -> u64 {
        (self.bytes / 16).clamp(64 << 10, 16 << 20)
    }
}

/// A message to the writer thread.
pub(super) enum WriterCommand {
    Event(Arc<Envelope>),
    /// Events were lost on the way; this is the state after them.
    Snapshot(Box<State>),
    Config(ConfigSource),
    /// Say when everything has been written, or that it cannot be.
    Mark(oneshot::Sender<bool>),
    /// Write everything, synchronise it if that is asked for, and say whether that has worked.
    Flush {
        synchronise: bool,
        reply: Sender<Result<(), String>>,
    },
}

/// Gets the events about the journal itself.
pub type JournalStatusFn = Arc<dyn Fn(SystemEvent) + Send + Sync>;

/// What the first segment begins with.
#[derive(Clone, Debug)]
pub struct WriterInit {
    /// The header of the segments.
    pub head: SegmentHeader,
    /// The state before the opening.
    pub state: State,
    /// What was committed before the actors were started.
    pub opening: Vec<Envelope>,
}
