//! Cgroups: each run of a program has one to itself, as what the kernel holds it to, and as what nothing of it escapes.
//!
//! They are in a directory of this gaggled's own, `DIRECTORY/ID`, where the id is that of its journal: two gaggleds that
//! are given the same directory do not meet. A run has `DIRECTORY/ID/PROGRAM.RUN`, which goes with it.

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

/// How long the kernel may take to end what was killed. What takes longer is left to the next daemon.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The cgroup of one run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// That of this run.
    pub(crate) fn new(own: &Path, program: &str, instance: InstanceId) -> Self {
        Self(own.join(format!("{program}.{instance}")))
    }

    /// That of this run in one of these directories, if there is one.
    pub(crate) fn find(directories: &[PathBuf], program: &str, instance: InstanceId) -> Option<Self> {
        directories.iter().map(|own| Self::new(own, program, instance)).find(|cgroup| cgroup.0.is_dir())
    }

    /// Makes it. A process that writes `0` to the returned file enters it.
    pub(crate) fn make(&self, settings: &[(String, String)]) -> io::Result<File> {
        // One that an earlier run of this number has left may hold unknown processes.
        fs::create_dir(&self.0)?;
        set(&self.0, settings).and_then(|()| self.procs_file()).inspect_err(|_| {
            self.remove();
        })
    }

    /// A process that writes `0` to it enters the cgroup.
    pub(crate) fn procs_file(&self) -> io::Result<File> {
        open(&self.0, "cgroup.procs")
    }

    /// The processes that have not ended, in it and in those that they have made in it.
    pub(crate) fn members(&self) -> Vec<i32> {
        let pids = |path: &PathBuf| -> Vec<i32> {
            // One that is not to be seen from here is 0.
            read(path, "cgroup.procs").lines().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid > 0).collect()
        };
        with_nested(&self.0).iter().flat_map(pids).collect()
    }

    /// Kills everything in it.
    pub(crate) fn kill(&self) {
        if write(&self.0, "cgroup.kill", "1").is_err() {
            // Kernels before 5.14 cannot do that; but what stands still makes nothing new meanwhile.
            let _ = write(&self.0, "cgroup.freeze", "1");
            for pid in self.members() {
                sys::send(pid, SIGKILL);
            }
        }
    }

    /// How a main process in it has ended that gaggled has not killed: the kernel may have, because memory ran out.
    pub(crate) fn oom_status(&self, status: ExitStatus) -> ExitStatus {
        let events = read(&self.0, "memory.events.local");
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        match (status, kills.map(str::trim)) {
            (ExitStatus::Signal(SIGKILL), Some(kills)) if kills != "0" => ExitStatus::OutOfMemory,
            _ => status,
        }
    }

    /// Removes it; whether it is gone. It stays as long as something in it has not ended.
    pub(crate) fn remove(&self) -> bool {
        let remove = |path: &PathBuf| {
            fs::remove_dir(path).map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |()| true)
        };
        with_nested(&self.0).iter().rev().all(remove)
    }

    /// Kills everything in it and removes it; whether that was possible in time.
    fn end(&self, within: Duration) -> bool {
        let deadline = real_now() + within;
        self.kill();
        // Before it is looked at again, so that no change is missed.
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

/// Ends the cgroups that are sent to it, in a thread of its own: the kernel takes its time.
pub(crate) fn undertake(dead: Receiver<Cgroup>) -> io::Result<()> {
    let work = move || {
        for cgroup in dead {
            cgroup.end(REMOVE_TIMEOUT);
        }
    };
    thread::Builder::new().name("cgroup-remover".into()).spawn(work).map(drop)
}

/// The cgroups in a directory of our own but these: what is left of runs that have ended.
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

/// Opens one of the kernel's files; what is not there is not made.
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
