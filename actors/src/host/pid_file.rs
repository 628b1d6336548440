//! Pid files: those that gaggled writes, and those that it reads.
//!
//! The child itself writes its process id, so that the file is there before its command is executed. It is written under
//! another name and renamed when it is whole: whoever looks never finds half a number, and no link is followed.

use std::{
    ffi::CString,
    fs::{self, OpenOptions},
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
};

use gaggled_core::{health::Complaint, host::ExecStage};

use super::kernel::{PidFilePlan, SpawnError};

/// How much of a pid file is read, in bytes.
const LONGEST: u64 = 64;

/// A pid file that is to be written.
#[derive(Debug)]
pub(super) struct Created {
    file: OwnedFd,
    new: CString,
    path: CString,
}

/// Makes the file under its first name.
pub(super) fn create(path: &str) -> Result<Created, SpawnError> {
    let failed = |errno| SpawnError { stage: ExecStage::PidFile, errno };
    let name = |text: String| CString::new(text).map_err(|_| failed(libc::EINVAL));
    let new = format!("{path}.gaggled");
    // One that was left there is of a start that failed; whatever else it is, it is not written through.
    let _ = fs::remove_file(&new);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o644).custom_flags(libc::O_NOFOLLOW).open(&new);
    let file = file.map_err(|error| failed(error.raw_os_error().unwrap_or(libc::EIO)))?;
    Ok(Created { file: file.into(), new: name(new)?, path: name(path.to_owned())? })
}

impl Created {
    pub(super) fn plan(&self) -> PidFilePlan<'_> {
        PidFilePlan { file: &self.file, new: &self.new, path: &self.path }
    }

    /// There is no process: neither is there to be a file. It has its name already if a later step has failed.
    pub(super) fn abandon(self, failed: ExecStage) {
        let named = match failed {
            ExecStage::Fork | ExecStage::Cgroup | ExecStage::Log | ExecStage::Session | ExecStage::PidFile => &self.new,
            ExecStage::Limits | ExecStage::Root | ExecStage::User | ExecStage::Wd | ExecStage::Exec => &self.path,
        };
        if let Ok(path) = named.to_str() {
            let _ = fs::remove_file(path);
        }
    }
}

/// A process that a pid file names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub pid: i32,
    /// To whom the file belongs.
    pub owner: u32,
}

/// The process that a pid file names.
pub(super) fn read(path: &str) -> Result<Named, Complaint> {
    let wrong = |error: io::Error| Complaint::Error(error.raw_os_error().unwrap_or(libc::EIO));
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).map_err(wrong)?;
    let found = file.metadata().map_err(wrong)?;
    if !found.is_file() {
        return Err(Complaint::NoPid);
    }
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes).map_err(wrong)?;
    let pid = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok());
    pid.filter(|pid| *pid > 0).map(|pid| Named { pid, owner: found.uid() }).ok_or(Complaint::NoPid)
}

/// Removes a pid file that is still that of a process which has ended.
pub(super) fn remove(path: &str, pid: i32) {
    if read(path).is_ok_and(|named| named.pid == pid) {
        let _ = fs::remove_file(path);
    }
}
