//! Watches the state directory of a running gaggled, and restores it if it is removed or replaced.
//!
//! A cleaner of old files, an operator or a restored backup may remove, replace or empty the directory. Events then go
//! to files that the next run of gaggled does not find: it would start without history, beside programs that it does
//! not know. inotify reports most such changes at once. The others, such as a replaced parent directory, are noticed
//! when the writer checks the directory, at the latest before a handover.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use crossbeam_channel::{Receiver, Sender};
use inotify::{EventMask, Inotify, WatchMask};
use nix::fcntl::Flock;

use crate::journal::directory::{StateError, claim};

/// The device and inode number of a file.
type Node = (u64, u64);

/// The state directory as it was opened, or made anew.
pub(super) struct Place {
    path: PathBuf,
    identity: String,
    directory: Option<Node>,
    lock: Option<Node>,
    /// The lock of a directory that was made anew; that of the first is held by the daemon.
    held: Option<Flock<File>>,
    watch: Sender<()>,
    changed: Receiver<()>,
}

impl Place {
    /// The directory as it is now.
    pub(super) fn new(path: &Path, identity: &str) -> Self {
        let (told, changed) = crossbeam_channel::bounded(1);
        let (watch, wanted) = crossbeam_channel::bounded(1);
        let watched = path.to_owned();
        // Without the thread, or without inotify, the change is noticed when the writer looks.
        let _ = thread::Builder::new().name("state watch".into()).spawn(move || watch_for(&watched, &wanted, &told));
        let _ = watch.try_send(());
        let lock = node(&path.join("lock"));
        Self {
            path: path.to_owned(),
            identity: identity.to_owned(),
            directory: node(path),
            lock,
            held: None,
            watch,
            changed,
        }
    }

    /// Where a removal or a move is reported.
    pub(super) fn changed(&self) -> &Receiver<()> {
        &self.changed
    }

    /// What is wrong with the directory, if anything is; `segment` is the one that is written.
    pub(super) fn damage(&self, segment: Option<(&Path, &File)>) -> Option<&'static str> {
        if node(&self.path).is_none() {
            return Some("the state directory was removed");
        }
        if node(&self.path) != self.directory {
            return Some("the state directory was replaced by another");
        }
        let is_lost = |(path, file): (&Path, &File)| node(path) != file.metadata().ok().map(|found| found_node(&found));
        let lost = node(&self.path.join("lock")) != self.lock
            || node(&self.path.join("identity")).is_none()
            || segment.is_some_and(is_lost);
        lost.then_some("files were removed from the state directory")
    }

    /// Creates the directory again, or uses the one that is there now, with the identity of this journal.
    pub(super) fn heal(&mut self) -> Result<(), StateError> {
        // A lock file that is still there is held by this process already.
        let is_held = self.lock.is_some() && node(&self.path.join("lock")) == self.lock;
        let lock = claim(&self.path, &self.identity, !is_held)?;
        if lock.is_some() {
            self.held = lock;
        }
        (self.directory, self.lock) = (node(&self.path), node(&self.path.join("lock")));
        let _ = self.watch.try_send(());
        Ok(())
    }
}

fn node(path: &Path) -> Option<Node> {
    fs::symlink_metadata(path).ok().map(|found| found_node(&found))
}

fn found_node(found: &fs::Metadata) -> Node {
    (found.dev(), found.ino())
}

/// Reports all removals from the directory, and that of the directory. A message in `wanted` makes it watch the
/// directory that is there then.
fn watch_for(path: &Path, wanted: &Receiver<()>, told: &Sender<()>) {
    let flags = WatchMask::DELETE | WatchMask::MOVED_FROM | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF;
    let mut buffer = [0; 4096];
    for () in wanted {
        let Ok(mut inotify) = Inotify::init() else { return };
        if inotify.watches().add(path, flags | WatchMask::ONLYDIR).is_err() {
            continue;
        }
        // It may have changed before it was watched.
        let _ = told.try_send(());
        while wanted.is_empty() {
            let Ok(events) = inotify.read_events_blocking(&mut buffer) else { return };
            // A directory that was removed or moved away is not the state directory any more.
            let over = EventMask::IGNORED | EventMask::MOVE_SELF;
            let ends = events.into_iter().any(|event| event.mask.intersects(over));
            let _ = told.try_send(());
            if ends {
                break;
            }
        }
    }
}

/// Called when the directory was created again, to restore the other files of gaggled in it.
pub type Healed = Arc<dyn Fn() + Send + Sync>;
