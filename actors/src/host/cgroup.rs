//! Cgroups: each run of a program has one to itself, as what the kernel holds it to, and as what nothing of it escapes.
//!
//! They are in a directory of this gaggled's own, `DIRECTORY/ID`, where the id is that of its journal: two gaggleds that
//! are given the same directory do not meet. A run has `DIRECTORY/ID/PROGRAM.RUN`, which goes with it.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    process,
};

use gaggled_core::{confines::Cgroup as Wanted, host::ExitStatus, ids::InstanceId};
use nix::{
    libc::SIGKILL,
    sys::statfs::{CGROUP2_SUPER_MAGIC, statfs},
};
use sha2::{Digest, Sha256};

use super::kernel;

/// The cgroup of one run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cgroup(PathBuf);

impl Cgroup {
    /// That of this run.
    pub(super) fn new(own: &Path, program: &str, instance: InstanceId) -> Self {
        Self(own.join(format!("{program}.{instance}")))
    }

    /// That of this run in one of these directories, if there is one.
    pub(super) fn find(directories: &[PathBuf], program: &str, instance: InstanceId) -> Option<Self> {
        directories.iter().map(|own| Self::new(own, program, instance)).find(|cgroup| cgroup.0.is_dir())
    }

    /// Makes it. Whoever writes `0` to what is returned is in it.
    pub(super) fn make(&self, settings: &[(String, String)]) -> io::Result<File> {
        make_directory(&self.0)?;
        set(&self.0, settings).and_then(|()| self.entrance()).inspect_err(|_| {
            self.remove();
        })
    }

    /// Whoever writes `0` to it is in it.
    pub(super) fn entrance(&self) -> io::Result<File> {
        open(&self.0, "cgroup.procs")
    }

    /// The processes in it that have not ended.
    pub(super) fn members(&self) -> Vec<i32> {
        let text = read(&self.0, "cgroup.procs");
        text.lines().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// Kills everything in it.
    pub(super) fn kill(&self) {
        if write(&self.0, "cgroup.kill", "1").is_err() {
            // Kernels before 5.14 cannot do that, and something may be made meanwhile.
            for pid in self.members() {
                kernel::send(pid, SIGKILL);
            }
        }
    }

    /// How a main process in it has ended that nobody here has killed: the kernel may have, for want of memory.
    pub(super) fn explain(&self, status: ExitStatus) -> ExitStatus {
        let events = read(&self.0, "memory.events");
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        match (status, kills.map(str::trim)) {
            (ExitStatus::Signal(SIGKILL), Some(kills)) if kills != "0" => ExitStatus::OutOfMemory,
            _ => status,
        }
    }

    /// Removes it; whether it is gone. It stays as long as something in it has not ended.
    pub(super) fn remove(&self) -> bool {
        fs::remove_dir(&self.0).map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |()| true)
    }
}

/// The directory of this gaggled's own in the one that the configuration names.
pub fn own_directory(parent: &str, journal: &str) -> PathBuf {
    // The id itself is secret, and everybody can read the names of cgroups.
    let id = Sha256::digest(format!("cgroup {journal}"));
    let id = id.first_chunk().map_or(0, |first| u32::from_be_bytes(*first));
    Path::new(parent).join(format!("{id:08x}"))
}

/// The cgroups in a directory of our own but these: what is left of runs that have ended.
pub(super) fn others(own: &Path, known: &BTreeSet<Cgroup>) -> Vec<Cgroup> {
    let entries = fs::read_dir(own).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| Cgroup(entry.path())).filter(|cgroup| !known.contains(cgroup)).collect()
}

/// What is wrong with a directory for cgroups, in words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CgroupError {
    /// It is somewhere else.
    #[error("{0} is not in a file system of type cgroup2")]
    Elsewhere(String),
    /// It cannot be made, or not be used.
    #[error("{path}: {why}")]
    Io {
        /// The file or directory.
        path: String,
        /// What the kernel says.
        why: String,
    },
    /// There is no such controller here.
    #[error("this machine has no controller \"{controller}\" in cgroup2, only {available}")]
    NoController {
        /// What is asked for.
        controller: String,
        /// What there is.
        available: String,
    },
}

impl CgroupError {
    fn io(path: &Path, error: &io::Error) -> Self {
        Self::Io { path: path.display().to_string(), why: error.to_string() }
    }
}

/// Whether cgroups with these controllers can be had in a directory, as far as that can be told without making it.
pub fn check(parent: &Path, controllers: &BTreeSet<&str>) -> Result<(), CgroupError> {
    let existing = parent.ancestors().find(|path| path.exists()).unwrap_or(parent);
    if !is_cgroup(existing) {
        return Err(CgroupError::Elsewhere(parent.display().to_string()));
    }
    let top = existing.ancestors().take_while(|path| is_cgroup(path)).last().unwrap_or(existing);
    let available = read(top, "cgroup.controllers");
    let available: Vec<&str> = available.split_whitespace().collect();
    match controllers.iter().find(|controller| !available.contains(controller)) {
        Some(controller) => Err(CgroupError::NoController {
            controller: (*controller).to_owned(),
            available: if available.is_empty() { "none".to_owned() } else { available.join(", ") },
        }),
        None => Ok(()),
    }
}

/// Makes the directory of our own, in which cgroups have these controllers.
pub fn prepare(own: &Path, controllers: &BTreeSet<&str>) -> Result<(), CgroupError> {
    if let Some(parent) = own.parent() {
        check(parent, controllers)?;
    }
    fs::create_dir_all(own).map_err(|error| CgroupError::io(own, &error))?;
    controllers.iter().try_for_each(|controller| enable(own, controller))
}

/// Whether the kernel takes these settings, tried where cgroups of that kind can be made already.
pub fn try_settings(parent: &Path, settings: &[(String, String)]) -> Result<(), CgroupError> {
    let enabled = read(parent, "cgroup.subtree_control");
    let has = |controller: &str| enabled.split_whitespace().any(|enabled| enabled == controller);
    if settings.is_empty() || !settings.iter().filter_map(|(name, _)| Wanted::controller(name)).all(has) {
        return Ok(());
    }
    let place = parent.join(format!("check.{}", process::id()));
    make_directory(&place).map_err(|error| CgroupError::io(&place, &error))?;
    let taken = settings.iter().try_for_each(|(name, value)| {
        write(&place, name, value)
            .map_err(|error| CgroupError::Io { path: format!("\"{name}\": \"{value}\""), why: error.to_string() })
    });
    let _ = fs::remove_dir(&place);
    taken
}

/// Removes the directory of our own, if nothing is left in it.
pub fn remove_own(own: &Path) {
    for cgroup in others(own, &BTreeSet::new()) {
        cgroup.remove();
    }
    let _ = fs::remove_dir(own);
}

/// Lets the cgroups in a directory have a controller, and before that its own.
fn enable(directory: &Path, controller: &str) -> Result<(), CgroupError> {
    let lists = |file: &str| read(directory, file).split_whitespace().any(|listed| listed == controller);
    if lists("cgroup.subtree_control") {
        return Ok(());
    }
    if !lists("cgroup.controllers")
        && let Some(parent) = directory.parent().filter(|parent| is_cgroup(parent))
    {
        enable(parent, controller)?;
    }
    write(directory, "cgroup.subtree_control", &format!("+{controller}"))
        .map_err(|error| CgroupError::io(&directory.join("cgroup.subtree_control"), &error))
}

fn is_cgroup(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::create_dir(path).or_else(|error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })
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
        assert_eq!(cgroup.explain(killed), killed, "no controller for memory");
        for (events, explained) in [("oom 3\noom_kill 0\n", killed), ("oom 3\noom_kill 2\n", ExitStatus::OutOfMemory)] {
            fs::write(directory.path().join("memory.events"), events).expect("a file");
            assert_eq!((cgroup.explain(killed), cgroup.explain(left)), (explained, left));
        }
    }

    #[test]
    fn the_directory_of_our_own_does_not_tell_the_secret() {
        let own = own_directory("/x", "secret");
        assert_eq!(own, own_directory("/x", "secret"));
        assert_ne!(own, own_directory("/x", "another"));
        assert!(own.starts_with("/x") && !own.display().to_string().contains("secret"));
    }
}
