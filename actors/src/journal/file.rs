//! The journal on disk: one thread writes it, and nobody waits for that thread.
//!
//! Events are written as they come and synchronised within a second: the death of gaggled loses what is still under way
//! to the thread, a loss of power a second. When the disk is full, broken or too slow, supervision goes on and an event
//! says so; a new segment, which begins with a snapshot, heals that. A file that could not be synchronised is never
//! written again, because the kernel may have dropped what it could not write.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crossbeam_channel::{Sender, TrySendError};
use gaggled_core::{
    base::{ids::Seq, time::Millis},
    event::{Envelope, SystemEvent},
    journal::segment::{ConfigSource, SegmentHeader},
    state::State,
};
use tokio::sync::oneshot;

pub use super::place::Healed;
use super::{Sink, writer::Writer};

/// How many events may wait for the disk.
const CAPACITY: usize = 32_768;

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

/// Is told what becomes of the journal.
pub type JournalStatusFn = Arc<dyn Fn(SystemEvent) + Send + Sync>;

/// The way to the thread.
#[derive(Clone)]
pub struct JournalWriterHandle {
    entries: Sender<WriterCommand>,
    health: JournalStatusFn,
    /// The last event that the thread has been given when it was started.
    opened: Seq,
    behind: Arc<AtomicBool>,
}

/// What is written before the events that come.
#[derive(Clone, Debug)]
pub struct WriterInit {
    /// Whose segments they are.
    pub head: SegmentHeader,
    /// The state before the opening.
    pub state: State,
    /// What was committed before there was anybody to hear it.
    pub opening: Vec<Envelope>,
}

impl std::fmt::Debug for JournalWriterHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JournalFile").finish_non_exhaustive()
    }
}

impl JournalWriterHandle {
    /// Begins to write. The thread ends after the last of these values has gone.
    pub fn start(
        directory: PathBuf,
        journaled: WriterInit,
        retention: Retention,
        health: JournalStatusFn,
        healed: Healed,
    ) -> io::Result<(Self, thread::JoinHandle<()>)> {
        let (entries, receiver) = crossbeam_channel::bounded(CAPACITY);
        let behind = Arc::new(AtomicBool::new(false));
        let opened = journaled.opening.last().map_or(journaled.state.seq, |envelope| envelope.seq);
        let (writer, opening) = Writer::new(directory, journaled, retention, (health.clone(), healed), behind.clone())?;
        let thread = thread::Builder::new().name("journal".into()).spawn(move || writer.run(opening, &receiver))?;
        Ok((Self { entries, health, opened, behind }, thread))
    }

    /// Takes every event; never waits.
    pub fn sink(&self) -> Sink {
        let Self { entries, health, opened, behind } = self.clone();
        Box::new(move |envelope, state| {
            if envelope.seq <= opened {
                return;
            }
            if behind.load(Ordering::SeqCst) {
                // The snapshot holds this event too.
                if !entries.is_full() && entries.try_send(WriterCommand::Snapshot(Box::new(state.clone()))).is_ok() {
                    behind.store(false, Ordering::SeqCst);
                }
            } else if let Err(TrySendError::Full(_)) = entries.try_send(WriterCommand::Event(envelope.clone())) {
                behind.store(true, Ordering::SeqCst);
                health(SystemEvent::JournalDegraded {
                    reason: format!("the disk is too slow, {CAPACITY} events wait"),
                });
            }
        })
    }

    /// Leaves a configuration to the next life of the daemon.
    pub fn stage_config(&self, config: ConfigSource) -> Result<(), String> {
        self.entries.try_send(WriterCommand::Config(config)).map_err(|_| "too many events wait for the disk".to_owned())
    }

    /// Ends when everything so far has been written, or cannot be; whether it was.
    pub fn when_written(&self) -> oneshot::Receiver<bool> {
        let (mark, written) = oneshot::channel();
        // If too many events wait already, then what is asked about is not going to be written.
        let _ = self.entries.try_send(WriterCommand::Mark(mark));
        written
    }

    /// Waits until everything so far has been written, so that it survives this process.
    pub fn written(&self, within: Duration) -> Result<(), String> {
        self.ask(false, within)
    }

    /// Waits until everything so far has been synchronised, so that it survives a loss of power.
    pub fn flush(&self, within: Duration) -> Result<(), String> {
        self.ask(true, within)
    }

    fn ask(&self, synchronise: bool, within: Duration) -> Result<(), String> {
        let (reply, done) = crossbeam_channel::bounded(1);
        let late = || "the disk does not answer".to_owned();
        self.entries.send_timeout(WriterCommand::Flush { synchronise, reply }, within).map_err(|_| late())?;
        done.recv_timeout(within).map_err(|_| late())?
    }
}
