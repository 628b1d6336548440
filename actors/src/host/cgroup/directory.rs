//! gaggled's own directory for the cgroups of runs: creates, tests and removes it.

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::atomic::AtomicI32,
    time::Duration,
};

use gaggled_core::process::SpawnStage;
use nix::{
    errno::Errno,
    sys::statfs::{CGROUP2_SUPER_MAGIC, statfs},
};
use sha2::{Digest, Sha256};

use super::{Cgroup, others, read, write};
use crate::{
    clock::real_now,
    host::spawn::sys::{self, PreparedSandbox, SpawnError, SpawnPlan, Stack},
};

/// How long processes left in it may take to end when everything has stopped.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// gaggled's own directory in the one that the configuration names, with symbolic links resolved.
pub fn own_directory(parent: &str, journal: &str) -> PathBuf {
    let parent = Path::new(parent);
    let real = parent.ancestors().find_map(|existing| {
        let rest = parent.strip_prefix(existing).ok()?;
        Some(existing.canonicalize().ok()?.join(rest))
    });
    // The id itself is secret, and every user can read the names of cgroups.
    let id = Sha256::digest(format!("cgroup {journal}"));
    let id = id.first_chunk().map_or(0, |first| u32::from_be_bytes(*first));
    real.unwrap_or_else(|| parent.to_owned()).join(format!("{id:08x}"))
}

/// What is wrong with a directory for cgroups, in words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CgroupError {
    /// It is not in a file system of type cgroup2.
    #[error("{0} is not in a file system of type cgroup2")]
    Elsewhere(String),
    /// It cannot be created or used.
    #[error("{path}: {why}")]
    Io {
        /// The file or directory.
        path: String,
        /// The error of the kernel.
        why: String,
    },
    /// This machine lacks a controller.
    #[error("this machine has no controller \"{controller}\" in cgroup2, only {available}")]
    NoController {
        /// The controller that a setting needs.
        controller: String,
        /// The controllers of this machine.
        available: String,
    },
    /// There are processes in a cgroup in which the kernel allows none.
    #[error(
        "there are processes in a cgroup above {0}, perhaps gaggled itself, and so the kernel limits nothing in it: start gaggled in a cgroup beside it"
    )]
    Occupied(String),
    /// Processes cannot be put there.
    #[error(
        "gaggled may not put a process into {path} ({why}): start gaggled in a cgroup that was delegated to it together with that one"
    )]
    Closed {
        /// The directory.
        path: String,
        /// The error of the kernel.
        why: String,
    },
}

impl CgroupError {
    fn io(path: &Path, error: &io::Error) -> Self {
        Self::Io { path: path.display().to_string(), why: error.to_string() }
    }
}

/// Checks whether cgroups with these controllers can be used in a directory, as far as possible without creating it.
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

/// Creates gaggled's own directory, enables these controllers for cgroups in it, and tests whether processes can enter
/// one.
pub fn prepare(own: &Path, controllers: &BTreeSet<&str>) -> Result<(), CgroupError> {
    if let Some(parent) = own.parent() {
        check(parent, controllers)?;
    }
    fs::create_dir_all(own).map_err(|error| CgroupError::io(own, &error))?;
    controllers.iter().try_for_each(|controller| enable(own, controller))?;
    in_probe(own, |probe| {
        let procs_file = probe.procs_file().map_err(|error| CgroupError::io(&probe.0, &error))?;
        try_entrance(own, &procs_file)
    })
}

/// Tests whether the kernel accepts these settings, in a directory that has been prepared.
pub fn try_settings(own: &Path, settings: &[(String, String)]) -> Result<(), CgroupError> {
    in_probe(own, |probe| {
        settings.iter().try_for_each(|(name, value)| {
            write(&probe.0, name, value)
                .map_err(|error| CgroupError::Io { path: format!("\"{name}\": \"{value}\""), why: error.to_string() })
        })
    })
}

/// Kills the processes left in gaggled's own directory, and removes it.
pub fn remove_directory(own: &Path) {
    let deadline = real_now() + SHUTDOWN_TIMEOUT;
    for cgroup in others(own, &BTreeSet::new()) {
        cgroup.end(deadline.saturating_duration_since(real_now()));
    }
    let _ = fs::remove_dir(own);
}

fn in_probe<T>(own: &Path, act: impl FnOnce(&Cgroup) -> Result<T, CgroupError>) -> Result<T, CgroupError> {
    // The name of a run's cgroup ends with a number, so this one cannot be a run's.
    let probe = Cgroup(own.join("probe"));
    make_directory(&probe.0).map_err(|error| CgroupError::io(&probe.0, &error))?;
    let done = act(&probe);
    probe.remove();
    done
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::create_dir(path).or_else(|error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })
}

/// Tests whether a process can enter the cgroup, with one that has nothing to execute.
fn try_entrance(own: &Path, procs_file: &File) -> Result<(), CgroupError> {
    let failed = |error: &io::Error| CgroupError::io(own, error);
    let nothing = [CString::default()];
    let stdin = File::open("/dev/null").map_err(|error| failed(&error))?.into();
    let plan = SpawnPlan {
        candidates: &nothing,
        argv: &nothing,
        env: &[],
        wd: None,
        cgroup: Some(procs_file),
        stdin: &stdin,
        output: None,
        descriptor: None,
        pid_file: None,
        confinement: &PreparedSandbox::default(),
        keep_ignored: &[],
        record: None,
    };
    let mut stack = Stack::new().map_err(|error| failed(&error))?;
    match sys::spawn(&plan, &mut stack, &AtomicI32::new(0)) {
        Err(SpawnError { stage: SpawnStage::Cgroup, errno }) => Err(closed(own, errno)),
        _ => Ok(()),
    }
}

fn closed(own: &Path, errno: i32) -> CgroupError {
    let path = own.display().to_string();
    if [libc::EOPNOTSUPP, libc::EBUSY].contains(&errno) {
        return CgroupError::Occupied(path);
    }
    CgroupError::Closed { path, why: Errno::from_raw(errno).desc().to_lowercase() }
}

/// Enables a controller for the cgroups in a directory, and first, where it is missing, for the directory itself.
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
    write(directory, "cgroup.subtree_control", &format!("+{controller}")).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY | libc::EOPNOTSUPP) => CgroupError::Occupied(directory.join("*").display().to_string()),
        _ => CgroupError::io(&directory.join("cgroup.subtree_control"), &error),
    })
}

fn is_cgroup(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_of_our_own_does_not_tell_the_secret() {
        let own = own_directory("/x", "secret");
        assert_eq!(own, own_directory("/x", "secret"));
        assert_ne!(own, own_directory("/x", "another"));
        assert!(own.starts_with("/x") && !own.display().to_string().contains("secret"));
    }

    #[test]
    fn a_directory_has_one_name_whatever_it_is_called() {
        let directory = tempfile::tempdir().expect("a directory");
        let real = directory.path().canonicalize().expect("it is there").join("real");
        fs::create_dir(&real).expect("a directory");
        std::os::unix::fs::symlink(&real, directory.path().join("link")).expect("a link");
        let own = |name: &str| own_directory(&directory.path().join(name).display().to_string(), "j");
        assert_eq!(own("link"), own("real"));
        assert_eq!(own("link/new"), real.join("new").join(own("real").file_name().expect("a name")));
    }
}
