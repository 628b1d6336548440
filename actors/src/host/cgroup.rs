//! Cgroups: each run of a program gets its own, which applies the limits of the program and contains all its processes.
//!
//! They are in `DIRECTORY/ID`, where the id is derived from that of the journal, so that two gaggleds with the same
//! directory do not collide. A run has `DIRECTORY/ID/PROGRAM.RUN`, which is removed when the run has ended.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crossbeam_channel::Receiver;
use gaggled_core::{base::ids::InstanceId, process::ExitStatus};
use inotify::{Inotify, WatchMask};
use nix::{
    libc::SIGKILL,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::clock::real_now;
use crate::host::spawn::sys;

mod directory;

pub use self::directory::{CgroupError, check, own_directory, prepare, remove_directory, try_settings};

/// How long killed processes may take to end. A cgroup that takes longer is left to the next daemon.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The cgroup of one run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// The cgroup of a run.
    pub(crate) fn new(own: &Path, program: &str, instance: InstanceId) -> Self {
        Self(own.join(format!("{program}.{instance}")))
    }

    /// The cgroup of a run in one of these directories, if it exists.
    pub(crate) fn find(directories: &[PathBuf], program: &str, instance: InstanceId) -> Option<Self> {
        directories.iter().map(|own| Self::new(own, program, instance)).find(|cgroup| cgroup.0.is_dir())
    }

    /// Makes it. A process that writes `0` to the returned file enters it.
    pub(crate) fn make(&self, settings: &[(String, String)]) -> io::Result<File> {
        // Fails if it exists: one that an earlier run of this number has left may hold unknown processes.
        fs::create_dir(&self.0)?;
        set(&self.0, settings).and_then(|()| self.procs_file()).inspect_err(|_| {
            self.remove();
        })
    }

    /// A process that writes `0` to it enters the cgroup.
    pub(crate) fn procs_file(&self) -> io::Result<File> {
        open(&self.0, "cgroup.procs")
    }

    /// The processes that have not ended, in this cgroup and in those nested in it.
    pub(crate) fn members(&self) -> Vec<i32> {
        let pids = |path: &PathBuf| -> Vec<i32> {
            // A process of a pid namespace that is not visible here is listed as 0.
            read(path, "cgroup.procs").lines().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid > 0).collect()
        };
        with_nested(&self.0).iter().flat_map(pids).collect()
    }

    /// Kills everything in it.
    pub(crate) fn kill(&self) {
        if write(&self.0, "cgroup.kill", "1").is_err() {
            // Kernels before 5.14 have no cgroup.kill; but a frozen process cannot start others meanwhile.
            let _ = write(&self.0, "cgroup.freeze", "1");
            for pid in self.members() {
                sys::send(pid, SIGKILL);
            }
        }
    }

    /// Corrects the status of a main process that gaggled has not killed: the kernel may have killed it for lack of
    /// memory.
    pub(crate) fn oom_status(&self, status: ExitStatus) -> ExitStatus {
        let events = read(&self.0, "memory.events.local");
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        match (status, kills.map(str::trim)) {
            (ExitStatus::Signal(SIGKILL), Some(kills)) if kills != "0" => ExitStatus::OutOfMemory,
            _ => status,
        }
    }

    /// Removes the cgroup; returns whether it is gone. It cannot be removed before all processes in it have ended.
    pub(crate) fn remove(&self) -> bool {
        let remove = |path: &PathBuf| {
            fs::remove_dir(path).map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |()| true)
        };
        with_nested(&self.0).iter().rev().all(remove)
    }

    /// Kills everything in it and removes it; returns whether that succeeded in time.
    fn end(&self, within: Duration) -> bool {
        let deadline = real_now() + within;
        self.kill();
        // Watched before the first attempt to remove it, so that no change is missed.
        let mut changes = Inotify::init().and_then(|changes| {
            changes.watches().add(self.0.join("cgroup.events"), WatchMask::MODIFY).map(|_| changes)
        });
        while !self.remove() {
            let left = deadline.saturating_duration_since(real_now());
            let Some(changes) = changes.as_mut().ok().filter(|_| !left.is_zero()) else { return false };
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut [PollFd::new(changes.as_fd(), PollFlags::POLLIN)], left);
            let _ = changes.read_events(&mut [0; 1024]);
            self.kill();
        }
        true
    }
}

/// Kills and removes the cgroups that are sent to it, in a separate thread, because the kernel may take a while.
pub(crate) fn start_remover(dead: Receiver<Cgroup>) -> io::Result<()> {
    let work = move || {
        for cgroup in dead {
            cgroup.end(REMOVE_TIMEOUT);
        }
    };
    thread::Builder::new().name("cgroup-remover".into()).spawn(work).map(drop)
}

/// The cgroups in gaggled's own directory except the known ones: those of runs that have ended.
pub(crate) fn others(own: &Path, known: &BTreeSet<Cgroup>) -> Vec<Cgroup> {
    directories_in(own).into_iter().map(Cgroup).filter(|cgroup| !known.contains(cgroup)).collect()
}

/// A cgroup and those in it, which come after it.
fn with_nested(path: &Path) -> Vec<PathBuf> {
    let mut all = vec![path.to_owned()];
    let mut next = 0;
    while let Some(path) = all.get(next) {
        all.extend(directories_in(path));
        next += 1;
    }
    all
}

fn directories_in(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn set(directory: &Path, settings: &[(String, String)]) -> io::Result<()> {
    settings.iter().try_for_each(|(name, value)| write(directory, name, value))
}

fn read(directory: &Path, file: &str) -> String {
    fs::read_to_string(directory.join(file)).unwrap_or_default()
}

fn write(directory: &Path, file: &str, text: &str) -> io::Result<()> {
    open(directory, file)?.write_all(text.as_bytes())
}

/// Opens an existing file of the kernel for writing.
fn open(directory: &Path, file: &str) -> io::Result<File> {
    OpenOptions::new().write(true).open(directory.join(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_is_explained_by_what_the_kernel_has_counted() {
        let directory = tempfile::tempdir().expect("a directory");
        let cgroup = Cgroup(directory.path().to_owned());
        let (killed, left) = (ExitStatus::Signal(SIGKILL), ExitStatus::Code(137));
        assert_eq!(cgroup.oom_status(killed), killed, "no controller for memory");
        for (events, explained) in [("oom 3\noom_kill 0\n", killed), ("oom 3\noom_kill 2\n", ExitStatus::OutOfMemory)] {
            fs::write(directory.path().join("memory.events.local"), events).expect("a file");
            assert_eq!((cgroup.oom_status(killed), cgroup.oom_status(left)), (explained, left));
        }
    }
}
