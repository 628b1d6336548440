//! The journal on disk: one thread writes it, and nobody waits for that thread.
//!
//! Events are written as they come and synchronised within a second: the death of gaggled loses what is still under way
//! to the thread, a loss of power a second. When the disk is full, broken or too slow, supervision goes on and an event
//! says so; a new segment, which begins with a snapshot, heals that. A file that could not be synchronised is never
//! written again, because the kernel may have dropped what it could not write.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use gaggled_core::{
    event::{Envelope, SystemEvent},
    ids::Seq,
    segment::{self, ConfigText, Head, Kind},
    state::State,
    time::Millis,
};

use super::Sink;
use crate::state_directory::{SegmentFile, StateError, open_own, segments};

/// How many events may wait for the disk.
const CAPACITY: usize = 32_768;
/// How long an event may be written and not synchronised.
const SYNC: Duration = Duration::from_secs(1);
/// How soon a disk that has failed is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How many events are written at once.
const BATCH: usize = 1024;

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
    fn segment(self) -> u64 {
        (self.bytes / 16).clamp(64 << 10, 16 << 20)
    }
}

enum Entry {
    Event(Arc<Envelope>),
    /// Events were lost on the way; this is the state after them.
    Snapshot(Box<State>),
    Config(ConfigText),
    /// Write everything, synchronise it if that is asked for, and say whether that has worked.
    Flush {
        synchronise: bool,
        reply: Sender<Result<(), String>>,
    },
}

/// Is told what becomes of the journal.
pub type Health = Arc<dyn Fn(SystemEvent) + Send + Sync>;

/// The way to the thread.
#[derive(Clone)]
pub struct JournalFile {
    entries: Sender<Entry>,
    health: Health,
    /// The last event that the thread has been given when it was started.
    opened: Seq,
    behind: Arc<AtomicBool>,
}

/// What is written before the events that come.
#[derive(Clone, Debug)]
pub struct Journaled {
    /// Whose segments they are.
    pub head: Head,
    /// The state before the opening.
    pub state: State,
    /// What was committed before there was anybody to hear it.
    pub opening: Vec<Envelope>,
}

impl std::fmt::Debug for JournalFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JournalFile").finish_non_exhaustive()
    }
}

impl JournalFile {
    /// Begins to write. The thread ends after the last of these values has gone.
    pub fn start(
        directory: PathBuf,
        journaled: Journaled,
        retention: Retention,
        health: Health,
    ) -> io::Result<(Self, thread::JoinHandle<()>)> {
        let (entries, receiver) = crossbeam_channel::bounded(CAPACITY);
        let behind = Arc::new(AtomicBool::new(false));
        let Journaled { head, state, opening } = journaled;
        let opened = opening.last().map_or(state.seq, |envelope| envelope.seq);
        let writer = Writer {
            directory,
            head,
            state,
            retention,
            health: health.clone(),
            file: None,
            written: 0,
            good: 0,
            buffer: Vec::new(),
            buffered: 0,
            config: None,
            behind: behind.clone(),
            sync_at: None,
            retry_at: None,
            retry: RETRY.0,
            missed: 0,
            degraded: false,
            asked: false,
        };
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
                if !entries.is_full() && entries.try_send(Entry::Snapshot(Box::new(state.clone()))).is_ok() {
                    behind.store(false, Ordering::SeqCst);
                }
            } else if let Err(TrySendError::Full(_)) = entries.try_send(Entry::Event(envelope.clone())) {
                behind.store(true, Ordering::SeqCst);
                health(SystemEvent::JournalDegraded { why: format!("the disk is too slow, {CAPACITY} events wait") });
            }
        })
    }

    /// Leaves a configuration to the next life of the daemon.
    pub fn leave_config(&self, config: ConfigText) -> Result<(), String> {
        self.entries.try_send(Entry::Config(config)).map_err(|_| "too many events wait for the disk".to_owned())
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
        self.entries.send_timeout(Entry::Flush { synchronise, reply }, within).map_err(|_| late())?;
        done.recv_timeout(within).map_err(|_| late())?
    }
}

struct Writer {
    directory: PathBuf,
    head: Head,
    /// The fold of everything that has come, written or not.
    state: State,
    retention: Retention,
    health: Health,
    /// The segment that is written; `None` if there is none yet, or it has failed.
    file: Option<File>,
    /// Its size, and what of it is sure to be whole.
    written: u64,
    good: u64,
    /// What is to be written, and how many events it holds.
    buffer: Vec<u8>,
    buffered: u64,
    /// What is left to the next life.
    config: Option<ConfigText>,
    /// Whether events were lost on the way to this thread, so that a snapshot has to follow.
    behind: Arc<AtomicBool>,
    sync_at: Option<Instant>,
    retry_at: Option<Instant>,
    retry: Duration,
    /// Events that are in no segment.
    missed: u64,
    degraded: bool,
    /// Whether a snapshot was asked for.
    asked: bool,
}

impl Writer {
    fn run(mut self, opening: Vec<Envelope>, entries: &Receiver<Entry>) {
        self.begin(&opening);
        if self.file.is_none() {
            self.missed += opening.len() as u64;
        }
        for envelope in opening {
            self.state.apply(&envelope);
        }
        loop {
            let deadline = [self.sync_at, self.retry_at].into_iter().flatten().min();
            let first = match deadline {
                Some(moment) => entries.recv_deadline(moment),
                None => entries.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match first {
                Ok(first) => {
                    self.take(first);
                    entries.try_iter().take(BATCH).for_each(|entry| self.take(entry));
                    self.write();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.keep_up();
            self.catch_up(entries);
        }
        self.sync();
    }

    /// When this thread has caught up, an event brings the snapshot that makes up for what was lost.
    fn catch_up(&mut self, entries: &Receiver<Entry>) {
        if entries.is_empty() && self.behind.load(Ordering::SeqCst) && !std::mem::replace(&mut self.asked, true) {
            (self.health)(SystemEvent::JournalDegraded { why: "events were lost on the way to the disk".to_owned() });
        }
    }

    /// What is due: a disk that is tried again, a synchronisation, a new segment.
    fn keep_up(&mut self) {
        let now = now();
        if self.retry_at.is_some_and(|at| at <= now) {
            self.begin(&[]);
        }
        if self.sync_at.is_some_and(|at| at <= now) {
            self.sync();
        }
        if self.file.is_some() && self.written >= self.retention.segment() {
            self.sync();
            self.begin(&[]);
        }
    }

    fn take(&mut self, entry: Entry) {
        match entry {
            Entry::Event(envelope) => {
                if self.file.is_some() {
                    segment::frame_event(&envelope, &self.state.graph, &mut self.buffer);
                    self.buffered += 1;
                } else {
                    self.missed += 1;
                }
                self.state.apply(&envelope);
            }
            Entry::Snapshot(state) => {
                self.write();
                self.missed += state.seq.0.saturating_sub(self.state.seq.0);
                self.state = *state;
                (self.degraded, self.asked) = (true, false);
                self.begin(&[]);
            }
            Entry::Config(config) => {
                self.config = Some(config);
                if self.file.is_some() {
                    let frame = self.config_frame();
                    self.buffer.extend(frame);
                }
            }
            Entry::Flush { synchronise, reply } => {
                self.write();
                if synchronise {
                    self.sync();
                }
                let whole = self.file.is_some() && !self.behind.load(Ordering::SeqCst);
                let done = if whole { Ok(()) } else { Err("the journal cannot be written".to_owned()) };
                let _ = reply.send(done);
            }
        }
    }

    /// Begins a segment with a snapshot, and with the opening of a life if that begins with it: whole or not at all.
    fn begin(&mut self, opening: &[Envelope]) {
        self.retry_at = None;
        let begun = segment::begin(&self.head, &self.state).map_err(|why| why.to_string()).and_then(|bytes| {
            let mut bytes = bytes;
            bytes.extend(self.config_frame());
            for envelope in opening {
                segment::frame_event(envelope, &self.state.graph, &mut bytes);
            }
            let segment = SegmentFile::new(&self.directory, self.state.epoch, self.state.seq);
            self.make(&segment, &bytes).map(|file| (file, bytes.len() as u64))
        });
        match begun {
            Ok((file, size)) => {
                self.file = Some(file);
                (self.written, self.good, self.retry) = (size, size, RETRY.0);
                if std::mem::take(&mut self.degraded) {
                    let missed = std::mem::take(&mut self.missed);
                    (self.health)(SystemEvent::JournalRestored { missed });
                }
                self.forget();
            }
            Err(why) => self.fail(&why),
        }
    }

    /// The configuration that is left to the next life, if there is one.
    fn config_frame(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        if let Some(body) = self.config.as_ref().and_then(|config| serde_json::to_vec(config).ok()) {
            segment::frame(Kind::Config, &body, &mut frame);
        }
        frame
    }

    /// Makes the file of a segment. It gets its name when it is whole, so that there is never a part of a beginning.
    fn make(&self, segment: &SegmentFile, bytes: &[u8]) -> Result<File, String> {
        let new = segment.path.with_extension("new");
        let made = make_at(&new, bytes).and_then(|file| {
            fs::rename(&new, &segment.path).map_err(|error| words(&error))?;
            File::open(&self.directory).and_then(|directory| directory.sync_all()).map_err(|error| words(&error))?;
            Ok(file)
        });
        if made.is_err() {
            let _ = fs::remove_file(&new);
        }
        made
    }

    fn write(&mut self) {
        let Some(file) = &mut self.file else { return };
        if self.buffer.is_empty() {
            return;
        }
        match file.write_all(&self.buffer) {
            Ok(()) => {
                self.written += self.buffer.len() as u64;
                self.good = self.written;
                self.sync_at = self.sync_at.or(Some(now() + SYNC));
            }
            Err(error) => {
                // What was written in part is taken back; if that fails it is a torn end.
                let _ = file.set_len(self.good);
                self.missed += self.buffered;
                self.fail(&words(&error));
            }
        }
        self.buffer.clear();
        self.buffered = 0;
    }

    fn sync(&mut self) {
        self.sync_at = None;
        if let Some(Err(error)) = self.file.as_ref().map(File::sync_data) {
            self.fail(&words(&error));
        }
    }

    fn fail(&mut self, why: &str) {
        self.file = None;
        self.sync_at = None;
        self.retry_at = Some(now() + self.retry);
        self.retry = self.retry.saturating_mul(2).min(RETRY.1);
        if !std::mem::replace(&mut self.degraded, true) {
            (self.health)(SystemEvent::JournalDegraded { why: why.to_owned() });
        }
    }

    /// Deletes the oldest segments when there is too much of them, and those that are too old.
    fn forget(&self) {
        let segments = segments(&self.directory);
        let Some((_, past)) = segments.split_last() else { return };
        let sizes: Vec<u64> = past.iter().map(|file| fs::metadata(&file.path).map_or(0, |found| found.len())).collect();
        let mut total: u64 = sizes.iter().sum();
        // Room for the segment that is written now.
        let room = self.retention.bytes.saturating_sub(self.retention.segment());
        for (segment, size) in past.iter().zip(sizes) {
            if total <= room && !self.is_old(segment) {
                break;
            }
            let _ = fs::remove_file(&segment.path);
            total -= size;
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the age of a file is wall time")]
    fn is_old(&self, segment: &SegmentFile) -> bool {
        let changed = fs::metadata(&segment.path).and_then(|found| found.modified());
        let age = changed.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        age.is_some_and(|age| age > self.retention.age.as_duration())
    }
}

fn make_at(path: &Path, bytes: &[u8]) -> Result<File, String> {
    let mut options = OpenOptions::new();
    let mut file = open_own(path, options.create(true).write(true).truncate(true)).map_err(|error| match error {
        StateError::Io { error, .. } => words(&error),
        other @ (StateError::Unsafe { .. } | StateError::InUse { .. } | StateError::Newer { .. }) => other.to_string(),
    })?;
    file.write_all(bytes).and_then(|()| file.sync_data()).map_err(|error| words(&error))?;
    Ok(file)
}

/// An error without the number of the system.
fn words(error: &io::Error) -> String {
    let words = error.to_string();
    words.split(" (os error").next().unwrap_or_default().to_lowercase()
}

#[expect(clippy::disallowed_methods, reason = "disks live in real time")]
fn now() -> Instant {
    Instant::now()
}
