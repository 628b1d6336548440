//! The ends of processes, as the kernel reports them.

use std::{
    ffi::c_int,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use gaggled_core::process::ExitStatus;

/// Waits until any child has ended, and does not reap it, so that its process id cannot be used again before [`reap`].
/// `None` if there is no child.
pub fn wait_for_any() -> Option<(i32, ExitStatus)> {
    wait(libc::P_ALL, 0, libc::WEXITED | libc::WNOWAIT)
}

/// A child that has ended, if there is one now; it is not reaped.
pub fn peek_exited() -> Option<(i32, ExitStatus)> {
    wait(libc::P_ALL, 0, libc::WEXITED | libc::WNOWAIT | libc::WNOHANG).filter(|(pid, _)| *pid > 0)
}

/// Reaps a child that has ended, which frees its process id, and returns its status.
pub fn reap(pid: i32) -> ExitStatus {
    let id = libc::id_t::try_from(pid).unwrap_or(0);
    wait(libc::P_PID, id, libc::WEXITED | libc::WNOHANG).map_or(ExitStatus::Unknown, |(_, status)| status)
}

fn wait(kind: libc::idtype_t, id: libc::id_t, options: c_int) -> Option<(i32, ExitStatus)> {
    loop {
        // SAFETY: the structure is a local that the call fills; its fields are read only after it has succeeded.
        let (result, info) = unsafe {
            let mut info = std::mem::zeroed::<libc::siginfo_t>();
            (libc::waitid(kind, id, &raw mut info, options), info)
        };
        if result == 0 {
            // SAFETY: waitid fills these fields for every child that it reports.
            let (pid, value) = unsafe { (info.si_pid(), info.si_status()) };
            let status = match info.si_code {
                libc::CLD_EXITED => ExitStatus::Code(value),
                libc::CLD_KILLED => ExitStatus::Signal(value),
                libc::CLD_DUMPED => ExitStatus::Core(value),
                _ => ExitStatus::Unknown,
            };
            return Some((pid, status));
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
    }
}

/// The status of a process that is held by a pidfd and is no child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitInfo {
    /// It has ended and its parent has reaped it.
    Ended(ExitStatus),
    /// Its parent has not reaped it.
    NotYet,
    /// This kernel does not report it (Linux before 6.15).
    Unsupported,
}

/// The first version of the kernel's `struct pidfd_info`, 64 bytes.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// Asks how a process has ended.
pub fn exit_info(pidfd: &OwnedFd) -> ExitInfo {
    const PIDFD_GET_INFO: libc::c_ulong = 0xc040_ff0b;
    const EXIT: u64 = 1 << 3;
    let mut info = PidfdInfo { mask: EXIT, ..PidfdInfo::default() };
    // SAFETY: the request contains the size of the structure, which is a local that the call fills with plain numbers.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    if result == 0 {
        if info.mask & EXIT == 0 { ExitInfo::NotYet } else { ExitInfo::Ended(of_wait_status(info.exit_code)) }
    } else if io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH) {
        ExitInfo::NotYet
    } else {
        ExitInfo::Unsupported
    }
}

/// Decodes a wait status.
pub fn of_wait_status(status: c_int) -> ExitStatus {
    if libc::WIFEXITED(status) {
        ExitStatus::Code(libc::WEXITSTATUS(status))
    } else if libc::WIFSIGNALED(status) && libc::WCOREDUMP(status) {
        ExitStatus::Core(libc::WTERMSIG(status))
    } else if libc::WIFSIGNALED(status) {
        ExitStatus::Signal(libc::WTERMSIG(status))
    } else {
        ExitStatus::Unknown
    }
}
