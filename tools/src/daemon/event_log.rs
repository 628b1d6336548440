//! The log of the daemon: the journal in words, through slog, on standard error.
//!
//! A separate thread writes it. If its reader is stuck or gone, lines are dropped and counted; nothing else is
//! affected.

use std::{
    io::{self, IsTerminal},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use crossbeam_channel::{Receiver, Sender};
use gaggled_core::{
    event::{Envelope, Event, GroupEvent, RemoteEvent, SystemEvent},
    graph::Graph,
    protocol::describe_event,
};
use slog::{Drain, Logger, error, info, o, warn};

use crate::common::event_format::because;

/// How many lines may wait to be written.
const CAPACITY: usize = 8192;

enum Entry {
    Event(Arc<Envelope>),
    End,
}

/// The queue of the log. Never blocks.
#[derive(Clone)]
pub struct JournalLog {
    entries: Sender<Entry>,
    lost: Arc<AtomicU64>,
}

impl std::fmt::Debug for JournalLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JournalLog").finish_non_exhaustive()
    }
}

impl JournalLog {
    /// Starts the log; the graph has the names of the programs. The receiver is disconnected after the last line.
    pub fn start(graph: Arc<Graph>) -> io::Result<(Self, Receiver<()>)> {
        let (entries, receiver) = crossbeam_channel::bounded(CAPACITY);
        let lost = Arc::new(AtomicU64::new(0));
        let log = Self { entries, lost: lost.clone() };
        let (writing, written) = crossbeam_channel::bounded(0);
        thread::Builder::new().name("log".into()).spawn(move || {
            write(&graph, &receiver, &lost);
            drop(writing);
        })?;
        Ok((log, written))
    }

    /// Writes an event.
    pub fn event(&self, envelope: &Arc<Envelope>) {
        self.push(Entry::Event(envelope.clone()));
    }

    /// Ends the log after what was written so far.
    pub fn end(&self) {
        self.push(Entry::End);
    }

    fn push(&self, entry: Entry) {
        if self.entries.try_send(entry).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write(graph: &Graph, entries: &Receiver<Entry>, lost: &AtomicU64) {
    let logger = logger();
    for entry in entries {
        match entry {
            Entry::Event(envelope) => log_event(&logger, &envelope, graph),
            Entry::End => return,
        }
        let missing = lost.swap(0, Ordering::Relaxed);
        if missing > 0 {
            warn!(logger, "{} lines of this log were lost: its reader is too slow", missing);
        }
    }
}

fn log_event(logger: &Logger, envelope: &Envelope, graph: &Graph) {
    let words = describe_event(envelope, graph);
    let why = because(&envelope.cause);
    let why = if why.is_empty() { why } else { format!(" ({why})") };
    match &envelope.event {
        Event::System(SystemEvent::ActorPanicked { .. }) => error!(logger, "{} {}{}", envelope.seq, words, why),
        Event::System(
            SystemEvent::CommandRefused { .. }
            | SystemEvent::JournalDegraded { .. }
            | SystemEvent::JournalDamaged { .. },
        )
        | Event::Group(_, GroupEvent::Failed { .. } | GroupEvent::Leaving { .. }) => {
            warn!(logger, "{} {}{}", envelope.seq, words, why);
        }
        Event::Remote(_, RemoteEvent::Unseen { .. }) => warn!(logger, "{} {}{}", envelope.seq, words, why),
        Event::Program(..) | Event::Remote(..) | Event::Dependency(..) | Event::Group(..) | Event::System(_) => {
            info!(logger, "{} {}{}", envelope.seq, words, why);
        }
    }
}

fn logger() -> Logger {
    if io::stderr().is_terminal() {
        let decorator = slog_term::TermDecorator::new().stderr().build();
        let format = slog_term::CompactFormat::new(decorator).use_local_timestamp().build();
        return Logger::root(Mutex::new(format).ignore_res(), o!());
    }
    // Writes each line in one piece, because programs may write to the same file.
    let decorator = slog_term::PlainSyncDecorator::new(io::stderr());
    let format = slog_term::CompactFormat::new(decorator).use_local_timestamp().build();
    Logger::root(Mutex::new(format).ignore_res(), o!())
}
