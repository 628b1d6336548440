//! The state directory: whether it is safe, whose journal it holds, and what the previous daemon has left in it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crossbeam_channel::bounded;
use gaggled_core::{
    base::ids::{EpochId, Seq},
    journal::{
        history::{History, LoggedEvent},
        segment::{ConfigSource, Corruption, Replay, SegmentError, SegmentHeader},
    },
    state::State,
};
use nix::{
    fcntl::{Flock, FlockArg, OFlag},
    unistd::geteuid,
};
use thiserror::Error;

/// Why a directory cannot hold the journal.
#[derive(Debug, Error)]
pub enum StateError {
    /// It is not a directory, or another user could change it.
    #[error("{path} {why}")]
    Unsafe {
        /// The file or directory.
        path: String,
        /// What is wrong with it, and how to correct it.
        why: String,
    },
    /// Another gaggled writes there.
    #[error(
        "{path} is already in use by another gaggled{pid}: end that one, or give this one a directory of its own (gaggled.state_directory)"
    )]
    InUse {
        /// The directory.
        path: String,
        /// Its process id, as far as it is known.
        pid: String,
    },
    /// A system call failed.
    #[error("{path} cannot be used ({error}): correct that, or give another directory (gaggled.state_directory)")]
    Io {
        /// The file or directory.
        path: String,
        /// The error.
        error: io::Error,
    },
    /// A later version has written it.
    #[error("{path}: {how}: run that version, or move the file away and lose its events")]
    Newer {
        /// The file.
        path: String,
        /// Which version.
        how: Corruption,
    },
}

/// The directory of one gaggled. While this value exists, no other gaggled can open it.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    /// The id of the journal, drawn once. Only gaggled may know it: tokens are signed with it.
    pub identity: String,
    /// Where the identity comes from.
    pub origin: Origin,
    _lock: Flock<File>,
}

/// Where the identity of a directory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was in the directory.
    Known,
    /// There was none: gaggled has never used this directory, or everything in it was removed.
    New,
    /// The directory is a copy of another, whose programs are not ours.
    Copy,
    /// The directory has lost it while gaggled ran.
    Lost,
}

/// What the previous daemons have left.
#[derive(Debug, Default)]
pub struct RecoveredState {
    /// The head of the last segment and the state at its end.
    pub last: Option<(SegmentHeader, State)>,
    /// A configuration that the previous daemon has left for this one.
    pub next_config: Option<ConfigSource>,
    /// The last events.
    pub entries: Vec<LoggedEvent>,
    /// Files that were put aside, and why.
    pub damaged: Vec<(String, String)>,
}

/// A segment by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentFile {
    /// The run of the daemon that wrote it.
    pub epoch: EpochId,
    /// The last event before its first.
    pub after: Seq,
    /// The file.
    pub path: PathBuf,
}

const SUFFIX: &str = ".journal";

impl StateDirectory {
    /// Creates the directory if it does not exist, checks that it is safe, and locks it. `kept` is the identity that
    /// the previous daemon has left in memory. It is restored if the directory has lost it, because programs carry
    /// tokens of it.
    pub fn open(path: &Path, kept: Option<&str>) -> Result<Self, StateError> {
        make_directory(path)?;
        let lock = lock(path)?;
        let (identity, origin) = match (identity(path)?, kept) {
            ((drawn, _), Some(kept)) if drawn != kept => {
                write_identity(path, kept)?;
                (kept.to_owned(), Origin::Lost)
            }
            (found, _) => found,
        };
        Ok(Self { path: path.to_owned(), identity, origin, _lock: lock })
    }

    /// Forgets the identity that was drawn for a new directory.
    pub fn forget(&self) {
        if self.origin == Origin::New {
            let _ = fs::remove_file(self.path.join("identity"));
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what the previous daemons have left. A damaged segment is put aside, and used up to the damage.
    pub fn recover(&self, history: usize) -> Result<RecoveredState, StateError> {
        let mut remains = RecoveredState::default();
        let segments = segments(&self.path);
        let mut earlier = segments.as_slice();
        while let Some((segment, before)) = earlier.split_last() {
            earlier = before;
            let bytes = match read_own(&segment.path) {
                Ok(bytes) => bytes,
                Err(StateError::Io { path, error }) => {
                    remains.damaged.push((path, format!("it cannot be read: {error}")));
                    continue;
                }
                Err(other) => return Err(other),
            };
            let (replayed, broken) = replay(&bytes, history);
            if let Some(SegmentError { how, at }) = broken {
                // A segment whose beginning is damaged is of no use.
                let good = if replayed.is_some() { at } else { 0 };
                match how {
                    Corruption::NewerFormat(_) => {
                        return Err(StateError::Newer { path: segment.path.display().to_string(), how });
                    }
                    Corruption::Truncated => truncate_torn_tail(&segment.path, good),
                    Corruption::Damaged(_) => {
                        let file = quarantine(&segment.path, bytes.get(..good).unwrap_or_default());
                        remains.damaged.push((file, how.to_string()));
                    }
                }
            }
            if let Some((replay, entries)) = replayed {
                remains.next_config = replay.next_config;
                remains.last = Some((replay.head, replay.state));
                remains.entries = entries;
                break;
            }
        }
        remains.entries = with_earlier(earlier, remains.entries, history);
        Ok(remains)
    }
}

/// Checks whether the last segment of a directory can be read, without locking the directory.
pub fn last_segment(directory: &Path) -> Result<(), StateError> {
    for segment in segments(directory).iter().rev() {
        match Replay::open(&read_own(&segment.path)?) {
            Ok(_) => return Ok(()),
            Err(SegmentError { how: how @ Corruption::NewerFormat(_), .. }) => {
                return Err(StateError::Newer { path: segment.path.display().to_string(), how });
            }
            Err(_) => {}
        }
    }
    Ok(())
}

/// The directories in which the programs of the last daemon may have cgroups, without locking the directory of its journal.
pub fn last_cgroups(directory: &Path) -> Vec<PathBuf> {
    let cgroups = |segment: &SegmentFile| Some(Replay::open(&read_own(&segment.path).ok()?).ok()?.head.cgroups);
    segments(directory).iter().rev().find_map(cgroups).unwrap_or_default()
}

/// The segments of a directory, in order.
pub fn segments(directory: &Path) -> Vec<SegmentFile> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<SegmentFile> = entries.filter_map(|entry| SegmentFile::of(&entry.path())).collect();
    found.sort();
    found
}

impl SegmentFile {
    /// The segment that begins after this event.
    pub fn new(directory: &Path, epoch: EpochId, after: Seq) -> Self {
        Self {
            epoch,
            after,
            path: directory.join(format!("{epoch:016}-{after:016}{SUFFIX}", epoch = epoch.0, after = after.0)),
        }
    }

    fn of(path: &Path) -> Option<Self> {
        let (epoch, after) = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?.split_once('-')?;
        Some(Self { epoch: EpochId(epoch.parse().ok()?), after: Seq(after.parse().ok()?), path: path.to_owned() })
    }
}

/// Replays a segment up to its first error, and keeps its last events.
fn replay(bytes: &[u8], keep: usize) -> (Option<(Replay<'_>, Vec<LoggedEvent>)>, Option<SegmentError>) {
    let mut replay = match Replay::open(bytes) {
        Ok(replay) => replay,
        Err(broken) => return (None, Some(broken)),
    };
    let mut history = History::new(keep);
    let mut broken = None;
    while let Some(next) = replay.next_event() {
        match next {
            Ok((envelope, _)) => history.push(envelope.into(), &replay.state),
            Err(found) => {
                broken = Some(found);
                break;
            }
        }
    }
    (Some((replay, history.into_entries())), broken)
}

/// Adds the last events of earlier segments, so that a query about last night can be answered at once.
fn with_earlier(segments: &[SegmentFile], entries: Vec<LoggedEvent>, history: usize) -> Vec<LoggedEvent> {
    let mut entries = entries;
    for segment in segments.iter().rev() {
        let missing = history.saturating_sub(entries.len());
        if missing == 0 {
            break;
        }
        let Ok(bytes) = read_own(&segment.path) else { break };
        let Some((_, mut earlier)) = replay(&bytes, missing).0 else { break };
        earlier.append(&mut entries);
        entries = earlier;
    }
    entries
}

/// Cuts off an incomplete frame that a crash has left. If that fails the next daemon ignores it again.
fn truncate_torn_tail(path: &Path, at: usize) {
    if at == 0 {
        let _ = fs::remove_file(path);
    } else if let Ok(file) = OpenOptions::new().write(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path) {
        let _ = file.set_len(at as u64);
    }
}

/// Keeps a damaged segment under another name, and puts its intact part in its place. If that fails the next daemon
/// skips the damage again.
fn quarantine(path: &Path, good: &[u8]) -> String {
    let aside = path.with_extension("damaged");
    if let Err(error) = fs::hard_link(path, &aside)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return path.display().to_string();
    }
    if good.is_empty() {
        let _ = fs::remove_file(path);
    } else {
        let new = path.with_extension("new");
        let written = open_own(&new, OpenOptions::new().create(true).write(true).truncate(true))
            .is_ok_and(|mut file| file.write_all(good).and_then(|()| file.sync_all()).is_ok());
        let _ = if written { fs::rename(&new, path) } else { fs::remove_file(&new) };
    }
    aside.display().to_string()
}

/// Creates a directory of gaggled's own, and its parent, if they do not exist, and checks that no other user can change
/// it.
pub fn make_private(path: &Path, mode: u32) -> Result<(), StateError> {
    for directory in path.parent().filter(|parent| !parent.exists()).into_iter().chain([path]) {
        // Set explicitly, because the umask of gaggled applies above.
        let created = fs::DirBuilder::new().mode(mode).create(directory);
        match created.and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(mode))) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(StateError::Io { path: directory.display().to_string(), error });
            }
            Ok(()) | Err(_) => {}
        }
    }
    check_directory(path)
}

fn check_directory(path: &Path) -> Result<(), StateError> {
    let wrong = |why: &str| StateError::Unsafe { path: path.display().to_string(), why: why.to_owned() };
    let metadata =
        fs::symlink_metadata(path).map_err(|error| StateError::Io { path: path.display().to_string(), error })?;
    if metadata.is_symlink() {
        return Err(wrong("is a symbolic link: give the directory itself (gaggled.state_directory)"));
    }
    if !metadata.is_dir() {
        return Err(wrong("is not a directory: move it away, or give another directory (gaggled.state_directory)"));
    }
    if metadata.uid() != geteuid().as_raw() {
        return Err(wrong("belongs to another user: chown it, or give another directory (gaggled.state_directory)"));
    }
    if metadata.permissions().mode() & 0o022 != 0 {
        return Err(wrong(
            "can be written by others: chmod 700 it, or give another directory (gaggled.state_directory)",
        ));
    }
    Ok(())
}

/// Opens a file of the directory, which must be a regular file of gaggled's user.
pub(crate) fn open_own(path: &Path, options: &mut OpenOptions) -> Result<File, StateError> {
    let wrong = |why: &str| StateError::Unsafe { path: path.display().to_string(), why: why.to_owned() };
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file =
        options.mode(0o600).custom_flags(flags.bits()).open(path).map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => wrong("is a symbolic link: move it away"),
            _ => StateError::Io { path: path.display().to_string(), error },
        })?;
    let metadata = file.metadata().map_err(|error| StateError::Io { path: path.display().to_string(), error })?;
    if !metadata.is_file() {
        return Err(wrong("is not a file: move it away"));
    }
    if metadata.uid() != geteuid().as_raw() {
        return Err(wrong("belongs to another user: move it away"));
    }
    Ok(file)
}

/// Opens a file of the directory for writing; on a read-only file system, for reading.
fn open_or_look(path: &Path) -> Result<File, StateError> {
    let opened = open_own(path, OpenOptions::new().read(true).write(true).create(true));
    match &opened {
        // The file exists if a gaggled has used the directory before.
        Err(StateError::Io { error, .. }) if error.kind() == io::ErrorKind::ReadOnlyFilesystem && path.exists() => {
            open_own(path, OpenOptions::new().read(true))
        }
        _ => opened,
    }
}

/// Reads a file of the directory.
pub fn read_own(path: &Path) -> Result<Vec<u8>, StateError> {
    let mut bytes = Vec::new();
    open_own(path, OpenOptions::new().read(true))?
        .read_to_end(&mut bytes)
        .map_err(|error| StateError::Io { path: path.display().to_string(), error })?;
    Ok(bytes)
}

/// Makes the directory if it is not there, and looks whether it is safe.
fn make_directory(path: &Path) -> Result<(), StateError> {
    if let Err(error) = fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(StateError::Io { path: path.display().to_string(), error });
    }
    check_directory(path)
}

/// Locks the directory for this process.
fn lock(path: &Path) -> Result<Flock<File>, StateError> {
    let name = path.join("lock");
    let locked = Flock::lock(open_or_look(&name)?, FlockArg::LockExclusiveNonblock).ok();
    let Some(mut lock) = locked.or_else(|| lock_in_time(open_or_look(&name).ok()?)) else {
        let pid = holder(&open_or_look(&name)?).map_or_else(String::new, |pid| format!(", pid {pid}"));
        return Err(StateError::InUse { path: path.display().to_string(), pid });
    };
    // Only for information: the lock is held even if the disk is full.
    let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
    Ok(lock)
}

/// The process that holds the lock, according to the lock file.
fn holder(lock: &File) -> Option<i32> {
    let mut pid = [0; 16];
    let length = lock.read_at(&mut pid, 0).ok()?;
    std::str::from_utf8(pid.get(..length)?).ok()?.trim().parse().ok()
}

/// How long a killed gaggled may take to release the lock: a child that it was just starting holds it, too, until the
/// exec.
const DYING: Duration = Duration::from_secs(1);

/// Waits for the lock, but not long: a gaggled that has not been killed keeps it.
fn lock_in_time(file: File) -> Option<Flock<File>> {
    let (sender, receiver) = bounded(1);
    // A lock that comes too late has no receiver, and is released at once.
    let wait = move || sender.send(Flock::lock(file, FlockArg::LockExclusive));
    thread::Builder::new().name("lock".into()).spawn(wait).ok()?;
    receiver.recv_timeout(DYING).ok()?.ok()
}

/// Turns a directory that was removed, replaced or emptied into the state directory of this journal again. It is locked
/// if it is not yet.
pub(crate) fn claim(path: &Path, identity: &str, locks: bool) -> Result<Option<Flock<File>>, StateError> {
    make_directory(path)?;
    let lock = if locks { Some(lock(path)?) } else { None };
    write_identity(path, identity)?;
    Ok(lock)
}

/// The id of the journal, and where it comes from. A new one is generated if there is none, and for a copy: two
/// gaggleds must never take each other's programs for their own.
fn identity(directory: &Path) -> Result<(String, Origin), StateError> {
    let path = directory.join("identity");
    let failed = |error| StateError::Io { path: path.display().to_string(), error };
    let place = place_of(directory)?;
    let mut known = String::new();
    open_or_look(&path)?.read_to_string(&mut known).map_err(failed)?;
    match known.trim().split_once(' ') {
        Some((identity, of)) if of == place => Ok((identity.to_owned(), Origin::Known)),
        other => {
            let drawn = fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(failed)?;
            write_identity(directory, drawn.trim())?;
            Ok((drawn.trim().to_owned(), if other.is_some() { Origin::Copy } else { Origin::New }))
        }
    }
}

/// The id of the journal in a directory that gaggled uses.
pub fn known_identity(directory: &Path) -> Option<String> {
    let text = String::from_utf8(read_own(&directory.join("identity")).ok()?).ok()?;
    Some(text.trim().split_once(' ')?.0.to_owned())
}

fn write_identity(directory: &Path, identity: &str) -> Result<(), StateError> {
    let path = directory.join("identity");
    let failed = |error| StateError::Io { path: path.display().to_string(), error };
    let place = place_of(directory)?;
    let file = open_or_look(&path)?;
    file.set_len(0).map_err(failed)?;
    file.write_all_at(format!("{identity} {place}\n").as_bytes(), 0).map_err(failed)
}

/// What distinguishes the directory from a copy of it.
fn place_of(directory: &Path) -> Result<String, StateError> {
    let found =
        fs::metadata(directory).map_err(|error| StateError::Io { path: directory.display().to_string(), error })?;
    Ok(format!("{}:{}", found.dev(), found.ino()))
}

/// Which boot of the machine this is; empty if the kernel does not report it.
pub fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
