//! Files that are looked at when they change: what programs write to show that they are ready, and their pid files.
//!
//! They are watched with inotify. What is written to a file stays there when gaggled is away, and nobody who writes waits
//! for gaggled.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    path::Path,
    rc::Rc,
};

use futures_util::StreamExt;
use gaggled_core::ids::{InstanceId, ProgramId};
use inotify::{Inotify, WatchDescriptor, WatchMask};
use tokio::sync::mpsc::{self, UnboundedReceiver};

/// How much of a file is read at once, in bytes.
const CHUNK: usize = 64 << 10;

/// What is looked for in a file.
#[derive(Clone, Debug)]
pub(super) enum Goal {
    /// The end of a line.
    Line,
    /// A line with this text in it.
    LineWith(String),
}

/// A file that is read as it grows.
#[derive(Debug)]
struct Growing {
    instance: InstanceId,
    file: File,
    /// Its name, if another may take it.
    path: Option<String>,
    at: u64,
    goal: Goal,
    /// The beginning of a line that has no end yet, or the end of that if it is very long.
    rest: Vec<u8>,
}

/// Who watches what.
type Watched = Rc<RefCell<Vec<(WatchDescriptor, ProgramId)>>>;

/// Everything that is watched.
pub(super) struct Watches {
    inotify: inotify::Watches,
    watched: Watched,
    files: BTreeMap<ProgramId, Growing>,
    directories: BTreeMap<ProgramId, WatchDescriptor>,
}

impl Watches {
    /// Nothing yet, and where it is told for which program something has changed.
    pub(super) fn new(inotify: Inotify) -> io::Result<(Self, UnboundedReceiver<ProgramId>)> {
        let kernel = inotify.watches();
        let mut events = inotify.into_event_stream([0; 4096])?;
        let watched = Watched::default();
        let (tell, concerned) = mpsc::unbounded_channel();
        let whose = watched.clone();
        tokio::task::spawn_local(async move {
            while let Some(event) = events.next().await {
                let Ok(event) = event else { continue };
                let whose = whose.borrow();
                for (_, program) in whose.iter().filter(|(watch, _)| *watch == event.wd) {
                    let _ = tell.send(*program);
                }
            }
        });
        Ok((Self { inotify: kernel, watched, files: BTreeMap::new(), directories: BTreeMap::new() }, concerned))
    }

    /// Watches a file that a run writes to.
    pub(super) fn file(&mut self, program: ProgramId, instance: InstanceId, file: File, goal: Goal) {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        self.watch(program, &path, WatchMask::MODIFY);
        self.files.insert(program, Growing { instance, file, path: None, at: 0, goal, rest: Vec::new() });
    }

    /// Watches the log of a run, from where it began; from its end if that is not known.
    pub(super) fn log(&mut self, program: ProgramId, instance: InstanceId, log: &str, from: Option<u64>, text: &str) {
        // Whoever writes it may not have made it yet.
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o640).custom_flags(libc::O_NOFOLLOW);
        let Ok(file) = options.open(log) else { return };
        let at = from.unwrap_or_else(|| file.metadata().map_or(0, |found| found.len()));
        // It may be begun anew before the line comes.
        let parent = Path::new(log).parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new(".")).display().to_string();
        self.watch(program, &parent, WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO);
        let (goal, path) = (Goal::LineWith(text.to_owned()), Some(log.to_owned()));
        self.files.insert(program, Growing { instance, file, path, at, goal, rest: Vec::new() });
    }

    /// Watches the directory in which a file is to appear.
    pub(super) fn directory_of(&mut self, program: ProgramId, path: &str) {
        let parent = Path::new(path).parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new(".")).display().to_string();
        let flags = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::CLOSE_WRITE;
        if let Some(watch) = self.watch(program, &parent, flags | WatchMask::MODIFY) {
            self.directories.insert(program, watch);
        }
    }

    /// The directory of a program is of no interest any more.
    pub(super) fn forget_directory(&mut self, program: ProgramId) {
        if let Some(watch) = self.directories.remove(&program) {
            self.unwatch(program, Some(watch));
        }
    }

    /// Nothing of a program is of interest any more.
    pub(super) fn forget(&mut self, program: ProgramId) {
        self.files.remove(&program);
        self.directories.remove(&program);
        self.unwatch(program, None);
    }

    /// The run of a program that has just written what is looked for.
    pub(super) fn is_reached(&mut self, program: ProgramId) -> Option<InstanceId> {
        let growing = self.files.get_mut(&program)?;
        if !growing.read_on() {
            return None;
        }
        let instance = growing.instance;
        self.files.remove(&program);
        let directory = self.directories.get(&program).cloned();
        self.unwatch_but(program, directory.as_ref());
        Some(instance)
    }

    fn watch(&self, program: ProgramId, path: &str, flags: WatchMask) -> Option<WatchDescriptor> {
        let flags = flags | WatchMask::MASK_ADD;
        // What cannot be watched is looked at once, and when something else happens.
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

impl Growing {
    /// Reads what has been added; whether what is looked for is there.
    fn read_on(&mut self) -> bool {
        loop {
            if self.read_to_end() {
                return true;
            }
            let node = |file: &File| file.metadata().map(|found| found.ino()).ok();
            let another = self.path.as_ref().and_then(|path| File::open(path).ok());
            let Some(another) = another.filter(|another| node(another) != node(&self.file)) else { return false };
            (self.file, self.at) = (another, 0);
        }
    }

    fn read_to_end(&mut self) -> bool {
        let mut chunk = vec![0; CHUNK];
        while let Ok(length @ 1..) = self.file.read_at(&mut chunk, self.at) {
            self.at += length as u64;
            self.rest.extend(chunk.iter().take(length));
            let found = match &self.goal {
                Goal::Line => self.rest.contains(&b'\n'),
                Goal::LineWith(text) => contains(&self.rest, text.as_bytes()),
            };
            if found {
                return true;
            }
            // Whatever is found later begins after the last line, or overlaps the end of a very long one.
            let line = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            self.rest.drain(..line.max(self.rest.len().saturating_sub(CHUNK)));
        }
        false
    }
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

/// The file that a run was given by the life before to write a line to, if it still has it.
pub(super) fn given_before(pid: i32, fd: i32) -> Option<File> {
    let path = format!("/proc/{pid}/fd/{fd}");
    let target = std::fs::read_link(&path).ok()?;
    let is_ours = target.to_string_lossy().starts_with("/memfd:ready");
    let options = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).clone();
    options.open(path).ok().filter(|_| is_ours)
}
