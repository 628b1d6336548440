//! Pid files: those that gaggled writes, and those that it reads.
//!
//! The child itself writes its process id, so that the file is there before its command is executed. It is written under
//! another name and renamed when it is whole, so that a reader never finds half a number. The directory may belong to the
//! program's user: see [`safe_path`](crate::safe_path).

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

use gaggled_core::{host::probe::ProbeError, process::SpawnStage};

use crate::host::spawn::sys::{PidFilePlan, SpawnError};
use crate::safe_path::{SafeDirectory, SafePath};

/// How much of a pid file is read, in bytes.
const LONGEST: u64 = 64;

/// A pid file that is to be written.
#[derive(Debug)]
pub(crate) struct PendingPidFile {
    directory: SafeDirectory,
    file: File,
    new: CString,
    name: CString,
}

/// Creates the file under its temporary name.
pub(crate) fn create(path: &str) -> Result<PendingPidFile, SpawnError> {
    let failed =
        |error: io::Error| SpawnError { stage: SpawnStage::PidFile, errno: error.raw_os_error().unwrap_or(libc::EIO) };
    let path = SafePath::find(Path::new(path)).map_err(failed)?;
    let text = |name: &OsStr| CString::new(name.as_bytes()).map_err(|_| failed(io::ErrorKind::InvalidInput.into()));
    let new = path.beside(".gaggled");
    // A failed start may have left a file there. Whatever has this name is removed and not written through.
    let _ = path.directory.remove(&new);
    let file = path.directory.make(&new, 0o644).map_err(failed)?;
    Ok(PendingPidFile { file, new: text(&new)?, name: text(&path.name)?, directory: path.directory })
}

impl PendingPidFile {
    pub(crate) fn plan(&self) -> PidFilePlan<'_> {
        PidFilePlan { file: &self.file, directory: &self.directory, new: &self.new, name: &self.name }
    }

    /// Removes the file after a failed start. It already has its final name if a step after the rename has failed.
    pub(crate) fn abandon(self, failed: SpawnStage) {
        let named = match failed {
            SpawnStage::Fork
            | SpawnStage::Cgroup
            | SpawnStage::Log
            | SpawnStage::Session
            | SpawnStage::Notify
            | SpawnStage::PidFile => &self.new,
            SpawnStage::Limits
            | SpawnStage::Chroot
            | SpawnStage::User
            | SpawnStage::WorkingDirectory
            | SpawnStage::Exec => &self.name,
        };
        let _ = self.directory.remove(OsStr::from_bytes(named.as_bytes()));
    }
}

/// A process that a pid file names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PidFileEntry {
    pub pid: i32,
    /// The owner of the file.
    pub owner: u32,
}

/// The process that a pid file names.
pub(crate) fn read(path: &str) -> Result<PidFileEntry, ProbeError> {
    SafePath::find(Path::new(path)).map_err(probe_error).and_then(|path| named_in(&path))
}

fn probe_error(error: io::Error) -> ProbeError {
    ProbeError::Os(error.raw_os_error().unwrap_or(libc::EIO))
}

fn named_in(path: &SafePath) -> Result<PidFileEntry, ProbeError> {
    let file = path.read().map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => ProbeError::PidFileEmpty,
        _ => probe_error(error),
    })?;
    let owner = file.metadata().map_err(probe_error)?.uid();
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes).map_err(probe_error)?;
    let pid = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok());
    pid.filter(|pid| *pid > 0).map(|pid| PidFileEntry { pid, owner }).ok_or(ProbeError::PidFileEmpty)
}

/// Removes the pid file of a process that has ended, if it still names that process.
pub(crate) fn remove(path: &str, pid: i32) {
    if let Ok(path) = SafePath::find(Path::new(path))
        && named_in(&path).is_ok_and(|named| named.pid == pid)
    {
        let _ = path.directory.remove(&path.name);
    }
}
