//! Watches files that programs write: readiness descriptors, logs and pid files.
//!
//! They are watched with inotify. What a program writes to a file is kept while gaggled does not run, and a program
//! that writes never waits for gaggled.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::File,
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use futures_util::StreamExt;
use gaggled_core::base::ids::{InstanceId, ProgramId};
use inotify::{Inotify, WatchDescriptor, WatchMask};
use tokio::sync::Notify;

use crate::safe_path::{SafeDirectory, SafePath, reopen_regular};

/// How much of a file is read at once, in bytes.
const CHUNK: usize = 64 << 10;
/// How many chunks of one file are read before other programs get their turn.
const CHUNKS: usize = 16;

/// What is looked for in a file.
#[derive(Clone, Debug)]
pub(crate) enum Pattern {
    /// The end of a line.
    Line,
    /// A line with this text in it.
    LineWith(String),
}

/// A file that is read as it grows.
#[derive(Debug)]
struct TailedFile {
    instance: InstanceId,
    file: File,
    /// Its path, if another file may replace it.
    path: Option<String>,
    at: u64,
    goal: Pattern,
    /// The incomplete last line; only its end, if it is very long.
    rest: Vec<u8>,
}

/// Each watch with the program that it is for.
type Watched = Rc<RefCell<Vec<(WatchDescriptor, ProgramId)>>>;

/// A queue of programs whose files have changed: each is in it once, however often its files change.
#[derive(Debug, Default)]
pub(crate) struct PendingLooks {
    order: RefCell<VecDeque<ProgramId>>,
    waiting: RefCell<BTreeSet<ProgramId>>,
    changed: Notify,
}

impl PendingLooks {
    fn push(&self, program: ProgramId) {
        if self.waiting.borrow_mut().insert(program) {
            self.order.borrow_mut().push_back(program);
            self.changed.notify_one();
        }
    }

    fn pop(&self) -> Option<ProgramId> {
        let program = self.order.borrow_mut().pop_front()?;
        self.waiting.borrow_mut().remove(&program);
        Some(program)
    }

    /// The next program, when there is one.
    pub(crate) async fn next(&self) -> ProgramId {
        loop {
            if let Some(program) = self.pop() {
                return program;
            }
            self.changed.notified().await;
        }
    }
}

/// Everything that is watched.
pub(crate) struct FileWatches {
    inotify: inotify::Watches,
    watched: Watched,
    /// The programs that have to be looked at.
    concern: Rc<PendingLooks>,
    files: BTreeMap<ProgramId, TailedFile>,
    directories: BTreeMap<ProgramId, WatchDescriptor>,
}

impl FileWatches {
    /// Creates the watcher, and the queue of programs whose files have changed.
    pub(crate) fn new(inotify: Inotify) -> io::Result<(Self, Rc<PendingLooks>)> {
        let kernel = inotify.watches();
        let mut events = inotify.into_event_stream([0; 4096])?;
        let watched = Watched::default();
        let concern = Rc::new(PendingLooks::default());
        let (whose, looks) = (watched.clone(), concern.clone());
        tokio::task::spawn_local(async move {
            while let Some(event) = events.next().await {
                let Ok(event) = event else { continue };
                let whose = whose.borrow();
                for (_, program) in whose.iter().filter(|(watch, _)| *watch == event.wd) {
                    looks.push(*program);
                }
            }
        });
        let (files, directories) = (BTreeMap::new(), BTreeMap::new());
        Ok((Self { inotify: kernel, watched, concern: concern.clone(), files, directories }, concern))
    }

    /// Watches a file that a run writes to.
    pub(crate) fn file(&mut self, program: ProgramId, instance: InstanceId, file: File, goal: Pattern) {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        self.watch(program, Path::new(&path), WatchMask::MODIFY);
        self.files.insert(program, TailedFile { instance, file, path: None, at: 0, goal, rest: Vec::new() });
    }

    /// Watches the log of a run, from where it began; from its end if that is not known.
    pub(crate) fn log(&mut self, program: ProgramId, instance: InstanceId, log: &str, from: Option<u64>, text: &str) {
        let Ok(path) = SafePath::find(Path::new(log)) else { return };
        // Created here, because the process that writes it may not have created it yet.
        let Ok(file) = path.append().and_then(|_| path.read()) else { return };
        let at = from.unwrap_or_else(|| file.metadata().map_or(0, |found| found.len()));
        // The log may be rotated before the line is written.
        let changes = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO;
        self.watch(program, &path.directory.watchable(), changes);
        let (goal, path) = (Pattern::LineWith(text.to_owned()), Some(log.to_owned()));
        self.files.insert(program, TailedFile { instance, file, path, at, goal, rest: Vec::new() });
    }

    /// Watches the directory in which a file is to appear.
    pub(crate) fn directory_of(&mut self, program: ProgramId, path: &str) {
        let parent = Path::new(path).parent().filter(|parent| !parent.as_os_str().is_empty());
        let Ok(directory) = SafeDirectory::find(parent.unwrap_or(Path::new("."))) else { return };
        let flags = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::CLOSE_WRITE;
        if let Some(watch) = self.watch(program, &directory.watchable(), flags | WatchMask::MODIFY) {
            self.directories.insert(program, watch);
        }
    }

    /// Stops watching the directory of a program's pid file.
    pub(crate) fn forget_directory(&mut self, program: ProgramId) {
        if let Some(watch) = self.directories.remove(&program) {
            self.unwatch(program, Some(watch));
        }
    }

    /// Stops watching all files of a program.
    pub(crate) fn forget(&mut self, program: ProgramId) {
        self.files.remove(&program);
        self.directories.remove(&program);
        self.unwatch(program, None);
    }

    /// Reads what a program has written; returns its run if the pattern was found.
    pub(crate) fn is_reached(&mut self, program: ProgramId) -> Option<InstanceId> {
        let growing = self.files.get_mut(&program)?;
        match growing.read_on() {
            Look::Found => {}
            Look::NotYet => return None,
            Look::More => {
                // The rest is read after the other programs had their turn.
                self.concern.push(program);
                return None;
            }
        }
        let instance = growing.instance;
        self.files.remove(&program);
        let directory = self.directories.get(&program).cloned();
        self.unwatch_but(program, directory.as_ref());
        Some(instance)
    }

    fn watch(&self, program: ProgramId, path: &Path, flags: WatchMask) -> Option<WatchDescriptor> {
        let flags = flags | WatchMask::MASK_ADD;
        // A file that cannot be watched is still read now, and on other occasions.
        let watch = self.inotify.clone().add(path, flags).ok()?;
        self.watched.borrow_mut().push((watch.clone(), program));
        Some(watch)
    }

    fn unwatch_but(&self, program: ProgramId, kept: Option<&WatchDescriptor>) {
        let others: Vec<WatchDescriptor> = {
            let watched = self.watched.borrow();
            let of_program = watched.iter().filter(|(watch, own)| *own == program && Some(watch) != kept);
            of_program.map(|(watch, _)| watch.clone()).collect()
        };
        for watch in others {
            self.unwatch(program, Some(watch));
        }
    }

    fn unwatch(&self, program: ProgramId, only: Option<WatchDescriptor>) {
        let mut watched = self.watched.borrow_mut();
        let meant = |entry: &(WatchDescriptor, ProgramId)| {
            entry.1 == program && only.as_ref().is_none_or(|only| *only == entry.0)
        };
        let gone: Vec<WatchDescriptor> =
            watched.iter().filter(|entry| meant(entry)).map(|(watch, _)| watch.clone()).collect();
        watched.retain(|entry| !meant(entry));
        for watch in gone {
            if !watched.iter().any(|(other, _)| *other == watch) {
                let _ = self.inotify.clone().remove(watch);
            }
        }
    }
}

/// The result of reading a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// The pattern was found.
    Found,
    /// Everything was read, and the pattern was not found.
    NotYet,
    /// The limit was reached, and there is more to read.
    More,
}

impl TailedFile {
    /// Reads what has been added, up to a limit.
    fn read_on(&mut self) -> Look {
        let mut chunks = CHUNKS;
        loop {
            let look = self.read_to_end(&mut chunks);
            if look != Look::NotYet {
                return look;
            }
            let node = |file: &File| file.metadata().map(|found| (found.dev(), found.ino())).ok();
            let path = self.path.as_ref().and_then(|path| SafePath::find(Path::new(path)).ok());
            let another = path.and_then(|path| path.read().ok());
            let Some(another) = another.filter(|another| node(another) != node(&self.file)) else { return look };
            (self.file, self.at) = (another, 0);
        }
    }

    fn read_to_end(&mut self, chunks: &mut usize) -> Look {
        let mut chunk = vec![0; CHUNK];
        while let Ok(length @ 1..) = self.file.read_at(&mut chunk, self.at) {
            self.at += length as u64;
            self.rest.extend(chunk.iter().take(length));
            let found = match &self.goal {
                Pattern::Line => self.rest.contains(&b'\n'),
                Pattern::LineWith(text) => contains(&self.rest, text.as_bytes()),
            };
            if found {
                return Look::Found;
            }
            // A later match begins after the last complete line, or overlaps the end of a very long one.
            let line = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            self.rest.drain(..line.max(self.rest.len().saturating_sub(CHUNK)));
            *chunks = chunks.saturating_sub(1);
            if *chunks == 0 {
                return Look::More;
            }
        }
        Look::NotYet
    }
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

/// The file that the previous daemon gave a run to report readiness, if the run still has it open. The descriptor may
/// refer to any other file by now.
pub(crate) fn reopen_ready_fd(pid: i32, fd: i32) -> Option<File> {
    let path = PathBuf::from(format!("/proc/{pid}/fd/{fd}"));
    let target = std::fs::read_link(&path).ok()?;
    let is_ours = target.to_string_lossy().starts_with("/memfd:ready");
    reopen_regular(&path).ok().filter(|_| is_ours)
}
