//! The thread that writes the journal.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use crossbeam_channel::Receiver;
use gaggled_core::{
    base::ids::Seq,
    event::{Envelope, SystemEvent},
    journal::segment::{self, ConfigSource, Kind, Replay, SegmentHeader},
    state::State,
};
use tokio::sync::oneshot;

use super::{
    directory_watch::{Healed, Place},
    fsync::FsyncThread,
    writer_command::{JournalStatusFn, Retention, WriterCommand, WriterInit},
};
use crate::{
    clock::real_now,
    journal::directory::{SegmentFile, StateError, open_own, read_own, segments},
};

/// How long an event may be written and not synchronised.
const SYNC: Duration = Duration::from_secs(1);
/// How soon a disk that has failed is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How many events are written at once.
const BATCH: usize = 1024;

pub(super) struct Writer {
    directory: PathBuf,
    place: Place,
    /// Is called when the directory was made anew.
    healed: Healed,
    head: SegmentHeader,
    /// The state after all events so far, written or not.
    state: State,
    retention: Retention,
    health: JournalStatusFn,
    /// The segment that is written; `None` if there is none yet, or it has failed.
    file: Option<Arc<File>>,
    /// Whether segments with written events were removed.
    is_lost: bool,
    /// Where the last segment is.
    segment: Option<SegmentFile>,
    syncer: FsyncThread,
    /// Channels to notify when everything so far has been written.
    marks: Vec<oneshot::Sender<bool>>,
    /// The size of the segment, and the size up to which it is intact.
    written: u64,
    good: u64,
    /// What is to be written, and how many events it holds.
    buffer: Vec<u8>,
    buffered: u64,
    /// The configuration that is left to the next daemon.
    config: Option<ConfigSource>,
    /// Whether events were lost on the way to this thread, so that a snapshot has to follow.
    behind: Arc<AtomicBool>,
    sync_at: Option<Instant>,
    retry_at: Option<Instant>,
    retry: Duration,
    /// Events that are in no segment.
    missed: u64,
    /// Events that have been written since the last synchronisation began, and since the last that has ended.
    unsynced: (u64, u64),
    degraded: bool,
    /// Whether a snapshot was asked for.
    asked: bool,
}

impl Writer {
    /// Creates the writer, and returns it with the first events to write.
    pub(super) fn new(
        directory: PathBuf,
        journaled: WriterInit,
        retention: Retention,
        (health, healed): (JournalStatusFn, Healed),
        behind: Arc<AtomicBool>,
    ) -> io::Result<(Self, Vec<Envelope>)> {
        let WriterInit { head, state, opening } = journaled;
        let place = Place::new(&directory, &head.journal);
        let writer = Self {
            directory,
            place,
            healed,
            head,
            state,
            retention,
            health,
            file: None,
            is_lost: false,
            segment: None,
            syncer: FsyncThread::start()?,
            marks: Vec::new(),
            written: 0,
            good: 0,
            buffer: Vec::new(),
            buffered: 0,
            config: None,
            behind,
            sync_at: None,
            retry_at: None,
            retry: RETRY.0,
            missed: 0,
            unsynced: (0, 0),
            degraded: false,
            asked: false,
        };
        Ok((writer, opening))
    }

    pub(super) fn run(mut self, opening: Vec<Envelope>, entries: &Receiver<WriterCommand>) {
        self.begin(&opening);
        if self.file.is_none() {
            self.missed += opening.len() as u64;
        }
        for envelope in opening {
            self.state.apply(&envelope);
        }
        let never = crossbeam_channel::never();
        loop {
            let deadline = [self.sync_at.filter(|_| !self.syncer.is_busy()), self.retry_at].into_iter().flatten().min();
            let due = deadline.map_or(never.clone(), crossbeam_channel::at);
            crossbeam_channel::select! {
                recv(entries) -> first => {
                    let Ok(first) = first else { break };
                    self.take(first);
                    entries.try_iter().take(BATCH).for_each(|entry| self.take(entry));
                    self.write();
                    let written = self.file.is_some() && !self.behind.load(Ordering::SeqCst);
                    for mark in self.marks.drain(..) {
                        let _ = mark.send(written);
                    }
                }
                recv(self.place.changed()) -> _ => self.look_at_place(),
                recv(self.syncer.done()) -> done => if let Ok(done) = done { self.synchronised(done) },
                recv(due) -> _ => {}
            }
            self.keep_up();
            self.catch_up(entries);
        }
        self.sync();
    }

    /// A file has been synchronised by the fsync thread.
    fn synchronised(&mut self, (file, result): (Arc<File>, io::Result<()>)) {
        self.syncer.free();
        if self.file.as_ref().is_some_and(|own| Arc::ptr_eq(own, &file)) {
            match result {
                Ok(()) => self.unsynced.1 = self.unsynced.0,
                Err(error) => self.lost(&error),
            }
        }
    }

    /// Checks the state directory. If it or files in it were removed, goes on with a new segment in a restored
    /// directory.
    fn look_at_place(&mut self) {
        let segment = self.segment.as_ref().map(|segment| segment.path.as_path()).zip(self.file.as_deref());
        let Some(damage) = self.place.damage(segment) else { return };
        self.write();
        self.fail(damage);
        self.is_lost = true;
        self.restore();
    }

    /// Begins a new segment, in a new state directory if the old one is gone.
    fn restore(&mut self) {
        if self.place.damage(None).is_some() {
            if let Err(why) = self.place.heal() {
                return self.fail(&why.to_string());
            }
            self.is_lost = true;
            self.count_lost();
            self.begin(&[]);
            (self.healed)();
        } else {
            self.count_lost();
            self.begin(&[]);
        }
    }

    /// Counts the events of removed segments as missing. The directory may still hold an older part of this journal.
    fn count_lost(&mut self) {
        if std::mem::take(&mut self.is_lost) {
            self.missed = last_seq(&self.directory).map_or(0, |last| self.state.seq.0.saturating_sub(last.0));
        }
    }

    /// Once the queue is empty after events were lost, reports that: the event makes the sink send a snapshot.
    fn catch_up(&mut self, entries: &Receiver<WriterCommand>) {
        if entries.is_empty() && self.behind.load(Ordering::SeqCst) && !std::mem::replace(&mut self.asked, true) {
            (self.health)(SystemEvent::JournalDegraded {
                reason: "events were lost on the way to the disk".to_owned(),
            });
        }
    }

    /// Does what is due: a retry after a disk failure, a synchronisation, a new segment.
    fn keep_up(&mut self) {
        let now = real_now();
        if self.retry_at.is_some_and(|at| at <= now) {
            self.restore();
        }
        if self.sync_at.is_some_and(|at| at <= now)
            && let Some(file) = &self.file
            && self.syncer.begin(file)
        {
            self.unsynced.0 = 0;
            self.sync_at = None;
        }
        // Not while this segment is being synchronised.
        if self.file.is_some() && self.written >= self.retention.segment() && !self.syncer.is_busy() {
            self.sync();
            self.begin(&[]);
        }
    }

    fn take(&mut self, entry: WriterCommand) {
        match entry {
            WriterCommand::Event(envelope) => {
                if self.file.is_some() {
                    segment::frame_event(&envelope, &self.state.graph, &mut self.buffer);
                    self.buffered += 1;
                } else {
                    self.missed += 1;
                }
                self.state.apply(&envelope);
            }
            WriterCommand::Snapshot(state) => {
                self.write();
                self.missed += state.seq.0.saturating_sub(self.state.seq.0);
                self.state = *state;
                (self.degraded, self.asked) = (true, false);
                self.sync();
                self.begin(&[]);
            }
            WriterCommand::Config(config) => {
                self.config = Some(config);
                if self.file.is_some() {
                    let frame = self.config_frame();
                    self.buffer.extend(frame);
                }
            }
            WriterCommand::Mark(mark) => self.marks.push(mark),
            WriterCommand::Flush { synchronise, reply } => {
                self.write();
                if synchronise {
                    // A handover follows, which relies on it.
                    self.look_at_place();
                    self.sync();
                }
                let whole = self.file.is_some() && !self.behind.load(Ordering::SeqCst);
                let done = if whole { Ok(()) } else { Err("the journal cannot be written".to_owned()) };
                let _ = reply.send(done);
            }
        }
    }

    /// Begins a segment with a snapshot, and with the first events of a daemon if it is its first. The file is complete
    /// or does not exist.
    fn begin(&mut self, opening: &[Envelope]) {
        self.retry_at = None;
        self.head.lost_events = self.missed;
        let begun = segment::begin(&self.head, &self.state).map_err(|why| why.to_string()).and_then(|bytes| {
            let mut bytes = bytes;
            bytes.extend(self.config_frame());
            for envelope in opening {
                segment::frame_event(envelope, &self.state.graph, &mut bytes);
            }
            let segment = SegmentFile::new(&self.directory, self.state.epoch, self.state.seq);
            self.make(&segment, &bytes).map(|file| (file, segment, bytes.len() as u64))
        });
        match begun {
            Ok((file, segment, size)) => {
                self.segment = Some(segment);
                self.file = Some(Arc::new(file));
                (self.written, self.good, self.unsynced) = (size, size, (0, 0));
                let missed = std::mem::take(&mut self.missed);
                if std::mem::take(&mut self.degraded) {
                    (self.health)(SystemEvent::JournalRestored { lost_events: missed });
                }
                self.forget();
            }
            Err(why) => self.fail(&why),
        }
    }

    /// The configuration that is left to the next daemon, if there is one.
    fn config_frame(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        if let Some(body) = self.config.as_ref().and_then(|config| serde_json::to_vec(config).ok()) {
            segment::frame(Kind::Config, &body, &mut frame);
        }
        frame
    }

    /// Creates the file of a segment. It is renamed when it is complete, so that no segment has an incomplete
    /// beginning.
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
        let Some(file) = &self.file else { return };
        if self.buffer.is_empty() {
            return;
        }
        match (&**file).write_all(&self.buffer) {
            Ok(()) => {
                self.written += self.buffer.len() as u64;
                self.unsynced = (self.unsynced.0 + self.buffered, self.unsynced.1 + self.buffered);
                (self.good, self.retry) = (self.written, RETRY.0);
                self.sync_at = self.sync_at.or(Some(real_now() + SYNC));
            }
            Err(error) => {
                // An incomplete write is cut off; if that fails, the segment ends with an incomplete frame.
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
        match self.file.as_ref().map(|file| file.sync_data()) {
            Some(Ok(())) => self.unsynced = (0, 0),
            Some(Err(error)) => self.lost(&error),
            None => {}
        }
    }

    /// The segment could not be synchronised: the kernel may have dropped everything since the last synchronisation.
    fn lost(&mut self, error: &io::Error) {
        self.missed += self.unsynced.1;
        self.fail(&words(error));
    }

    fn fail(&mut self, why: &str) {
        self.file = None;
        self.sync_at = None;
        self.retry_at = Some(real_now() + self.retry);
        self.retry = self.retry.saturating_mul(2).min(RETRY.1);
        if !std::mem::replace(&mut self.degraded, true) {
            (self.health)(SystemEvent::JournalDegraded { reason: why.to_owned() });
        }
    }

    /// Deletes the oldest segments if they take too much space, and those that are too old.
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

/// The last event in a directory, if there is one.
fn last_seq(directory: &Path) -> Option<Seq> {
    let bytes = read_own(&segments(directory).pop()?.path).ok()?;
    let mut replay = Replay::open(&bytes).ok()?;
    while let Some(Ok(_)) = replay.next_event() {}
    Some(replay.state.seq)
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

/// The text of an error, without its number.
fn words(error: &io::Error) -> String {
    let words = error.to_string();
    words.split(" (os error").next().unwrap_or_default().to_lowercase()
}
