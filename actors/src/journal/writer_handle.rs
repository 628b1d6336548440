//! The journal on disk: one thread writes it, and no actor waits for that thread.
//!
//! Events are written as they come and synchronised within a second: a crash of gaggled loses those that are still
//! queued for the thread, a power failure those of the last second. When the disk is full, broken or too slow,
//! supervision goes on and an event reports it; a new segment, which begins with a snapshot, makes up for the missing
//! events. A file that could not be synchronised is never written again, because the kernel may have dropped data.

use crate::journal::writer_command::{JournalStatusFn, Retention, WriterCommand, WriterInit};
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
use gaggled_core::{base::ids::Seq, event::SystemEvent, journal::segment::ConfigSource};
use tokio::sync::oneshot;

pub use super::directory_watch::Healed;
use super::{Sink, writer::Writer};

/// How many events may wait for the disk.
const CAPACITY: usize = 32_768;

/// A handle of the writer thread.
#[derive(Clone)]
pub struct JournalWriterHandle {
    entries: Sender<WriterCommand>,
    health: JournalStatusFn,
    /// The last event that the thread has been given when it was started.
    opened: Seq,
    behind: Arc<AtomicBool>,
}

impl std::fmt::Debug for JournalWriterHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JournalWriterHandle").finish_non_exhaustive()
    }
}

impl JournalWriterHandle {
    /// Starts the thread, which ends when the last handle is dropped.
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

    /// Leaves a configuration to the next run of the daemon.
    pub fn stage_config(&self, config: ConfigSource) -> Result<(), String> {
        self.entries.try_send(WriterCommand::Config(config)).map_err(|_| "too many events wait for the disk".to_owned())
    }

    /// Completes when everything so far has been written, or cannot be; with whether it was.
    pub fn when_written(&self) -> oneshot::Receiver<bool> {
        let (mark, written) = oneshot::channel();
        // If the queue is full the mark is dropped: then the latest events will not be written either.
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
        let late = || "the disk does not respond".to_owned();
        self.entries.send_timeout(WriterCommand::Flush { synchronise, reply }, within).map_err(|_| late())?;
        done.recv_timeout(within).map_err(|_| late())?
    }
}
