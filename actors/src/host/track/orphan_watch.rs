//! Watches for the ends of processes that are not our children: those that have survived the previous daemon.
//!
//! They are children of the subreaper now, which reports through a pipe how each has ended. If the subreaper has died
//! as well they are children of init, and the kernel is asked: since Linux 6.15 it reports through a pidfd how a
//! process has ended.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    sync::{Arc, PoisonError},
    thread,
    time::{Duration, Instant},
};

use gaggled_core::process::ExitStatus;
use nix::{
    errno::Errno,
    fcntl::{OFlag, SpliceFFlags, tee},
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    unistd::pipe2,
};

use crate::clock::real_now;
use crate::host::{procfs, spawn::sys, track::tracker::ProcessTracker};

/// The size of a report of the subreaper: process id, kind, value; each four bytes, little-endian.
pub const REAPED: usize = 12;

/// How soon the kernel is asked again for the status of a process that init has not reaped, at first and at most.
const RETRY_DELAY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// How long init may take to reap a process that has ended.
const REAPED_WITHIN: Duration = Duration::from_secs(3);

/// Encodes the end of a process.
pub fn encode_reaped(pid: i32, status: ExitStatus) -> [u8; REAPED] {
    let (kind, value): (i32, i32) = match status {
        ExitStatus::Code(code) => (1, code),
        ExitStatus::Signal(signal) => (2, signal),
        // The subreaper does not know of cgroups.
        ExitStatus::OutOfMemory => (2, libc::SIGKILL),
        ExitStatus::Core(signal) => (3, signal),
        ExitStatus::Unknown => (0, 0),
    };
    let mut bytes = [0; REAPED];
    for (place, word) in bytes.chunks_exact_mut(4).zip([pid, kind, value]) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Decodes the ends of processes.
pub fn decode_reaped(bytes: &[u8]) -> impl Iterator<Item = (i32, ExitStatus)> {
    bytes.chunks_exact(REAPED).map(|record| {
        let mut words = record.chunks_exact(4).map(|word| i32::from_le_bytes(word.try_into().unwrap_or_default()));
        let mut next = || words.next().unwrap_or(0);
        let (pid, kind, value) = (next(), next(), next());
        let status = match kind {
            1 => ExitStatus::Code(value),
            2 => ExitStatus::Signal(value),
            3 => ExitStatus::Core(value),
            _ => ExitStatus::Unknown,
        };
        (pid, status)
    })
}

/// The pipe in which the subreaper reports how processes have ended.
///
/// A report is removed from it only when it has been recorded elsewhere: a daemon that dies in between leaves it for
/// the next daemon.
#[derive(Debug)]
pub struct ExitPipe {
    pipe: File,
    /// A pipe for a copy of the reports, from which they are read.
    copy: (File, File),
}

impl ExitPipe {
    /// Wraps the read end of the subreaper's pipe, which must be non-blocking.
    pub fn new(pipe: File) -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        Ok(Self { pipe, copy: (read.into(), write.into()) })
    }

    /// The reports in it, which stay there; `None` if the subreaper has died.
    pub fn look(&mut self) -> Option<Vec<(i32, ExitStatus)>> {
        let length = match tee(&self.pipe, &self.copy.1, BATCH_MAX, SpliceFFlags::SPLICE_F_NONBLOCK) {
            Ok(0) => return None,
            Ok(length) => length,
            Err(_) => return Some(Vec::new()),
        };
        let mut bytes = vec![0; length];
        let read = self.copy.0.read_exact(&mut bytes);
        Some(if read.is_ok() { decode_reaped(&bytes).collect() } else { Vec::new() })
    }

    /// Removes the first `count` reports.
    pub fn take(&mut self, count: usize) {
        let mut bytes = vec![0; count * REAPED];
        // Reports that cannot be removed are read again, which does no harm.
        let _ = self.pipe.read_exact(&mut bytes);
    }
}

/// The most that is looked at, in bytes; more than any pipe holds by default.
const BATCH_MAX: usize = 1 << 20;

/// The epoll data of the pipe; that of an orphan is its process id.
const PIPE: u64 = 0;

/// What is watched.
#[derive(Debug, Default)]
pub(crate) struct OrphanWatch {
    /// The subreaper's pipe.
    pub pipe: Option<ExitPipe>,
    /// Processes that init reaps.
    pub orphans: Vec<(i32, OwnedFd)>,
}

impl OrphanWatch {
    /// Begins to watch; `gone` is called when the subreaper has died.
    pub(crate) fn start(self, shared: Arc<ProcessTracker>, gone: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        if let Some(pipe) = &self.pipe {
            epoll.add(&pipe.pipe, EpollEvent::new(EpollFlags::EPOLLIN, PIPE))?;
        }
        for (pid, orphan) in &self.orphans {
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
            epoll.add(orphan, EpollEvent::new(flags, u64::try_from(*pid).unwrap_or(0)))?;
        }
        thread::Builder::new().name("orphan-watch".into()).spawn(move || self.run(&epoll, &shared, gone))?;
        Ok(())
    }

    fn run(mut self, epoll: &Epoll, shared: &ProcessTracker, gone: impl FnOnce()) {
        let mut gone = Some(gone);
        let mut dying: Vec<(i32, Instant)> = Vec::new();
        let mut again = RETRY_DELAY.0;
        while self.pipe.is_some() || !self.orphans.is_empty() {
            let timeout = if dying.is_empty() {
                EpollTimeout::NONE
            } else {
                EpollTimeout::try_from(again).unwrap_or(EpollTimeout::NONE)
            };
            let mut events = [EpollEvent::empty(); 64];
            let count = match epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            again = if count == 0 { again.saturating_mul(2).min(RETRY_DELAY.1) } else { RETRY_DELAY.0 };
            for event in events.iter().take(count) {
                match i32::try_from(event.data()) {
                    Ok(0) if self.hear_subreaper(shared) => {}
                    Ok(0) => {
                        self.pipe.take().map(|pipe| epoll.delete(pipe.pipe));
                        gone.take().into_iter().for_each(|gone| gone());
                    }
                    Ok(pid) if dying.iter().all(|(known, _)| *known != pid) => dying.push((pid, real_now())),
                    Ok(_) | Err(_) => {}
                }
            }
            dying.retain(|(pid, since)| !self.ask_kernel(*pid, *since, shared));
        }
    }

    /// Reads reports of the subreaper; false if it has ended.
    fn hear_subreaper(&mut self, shared: &ProcessTracker) -> bool {
        let Some(pipe) = &mut self.pipe else { return false };
        let _listening = shared.listening.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(told) = pipe.look() else { return false };
        for (pid, status) in &told {
            shared.ended_elsewhere(*pid, *status);
        }
        pipe.take(told.len());
        true
    }

    /// Asks how an orphan has ended; false if that has to be asked again.
    ///
    /// The kernel knows it before the parent has reaped the orphan, but until then a program that checks the process of
    /// an old pid file would still find it, so the next run has to wait. Some parents never reap, and are not waited
    /// for long.
    fn ask_kernel(&mut self, pid: i32, since: Instant, shared: &ProcessTracker) -> bool {
        let Some(at) = self.orphans.iter().position(|(orphan, _)| *orphan == pid) else { return true };
        let zombie = procfs::stat(pid).filter(procfs::Stat::is_zombie);
        let status = match (zombie, sys::exit_info(&self.orphans[at].1)) {
            (Some(_), _) if since.elapsed() < REAPED_WITHIN => return false,
            (Some(stat), _) => sys::of_wait_status(stat.exit_code),
            (None, sys::ExitInfo::Ended(status)) => status,
            (None, sys::ExitInfo::NotYet) => return false,
            (None, sys::ExitInfo::Unsupported) => ExitStatus::Unknown,
        };
        self.orphans.swap_remove(at);
        shared.ended_elsewhere(pid, status);
        true
    }
}
