//! The pipes that programs write to.
//!
//! Each has a name in the state directory. If that directory is removed, running programs keep writing to their pipes,
//! which have no names any more: these are found again through the programs' open descriptors.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use gaggled_actors::{host, journal::directory::known_identity, safe_path::reopen_fifo};
use gaggled_core::config::log_policy::LogRoute;
use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::Mode,
    unistd::mkfifo,
};

use super::sink::is_ready;

/// How much is taken from a pipe at once, in bytes.
const CHUNK: usize = 64 << 10;

/// How much is still taken from a pipe after the end was asked for, in bytes.
const LAST: usize = 1 << 20;

/// The pipes that programs of this gaggled still write to and that have lost their names, by program.
pub(super) fn nameless(state: &Path, outlets: &[LogRoute]) -> BTreeMap<String, Vec<File>> {
    let mut found: BTreeMap<String, Vec<(u64, File)>> = BTreeMap::new();
    let Some(identity) = known_identity(state) else { return BTreeMap::new() };
    let named: BTreeMap<&str, &str> =
        outlets.iter().filter_map(|outlet| Some((outlet.program.as_str(), outlet.pipe.as_deref()?))).collect();
    for (program, pid) in host::tagged_processes(&identity) {
        let output = PathBuf::from(format!("/proc/{pid}/fd/1"));
        let target = fs::read_link(&output).unwrap_or_default().display().to_string();
        let target = Path::new(target.trim_end_matches(" (deleted)"));
        let Some(named) = named.get(program.as_str()).map(Path::new) else { continue };
        // The directory may have been moved before it was removed.
        if target.file_name() == named.file_name()
            && let Ok(pipe) = reopen_fifo(&output)
            && let Ok(node) = pipe.metadata().map(|found| found.ino())
            && fs::metadata(named).map(|found| found.ino()).ok() != Some(node)
        {
            let pipes = found.entry(program).or_default();
            if pipes.iter().all(|(known, _)| *known != node) {
                pipes.push((node, pipe));
            }
        }
    }
    found.into_iter().map(|(program, pipes)| (program, pipes.into_iter().map(|(_, pipe)| pipe).collect())).collect()
}

/// The pipe of this name, made if it is not there.
pub(super) fn named(path: &str) -> io::Result<File> {
    match mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    if fs::symlink_metadata(path)?.is_symlink() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path} is a symbolic link")));
    }
    open_pipe(Path::new(path))
}

/// Opens a pipe for writing as well, so that it never reports end of file.
fn open_pipe(path: &Path) -> io::Result<File> {
    let pipe = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if pipe.metadata()?.file_type().is_fifo() {
        return Ok(pipe);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no pipe", path.display())))
}

/// Passes on what comes, until it is notified to stop and nothing is left.
pub(super) fn each_chunk(pipes: &mut [File], stopped: &OwnedFd, mut write: impl FnMut(&[u8]) -> bool) {
    let mut chunk = vec![0; CHUNK];
    // If a program never stops writing, the rest is left in the pipe for the next logger.
    let mut last = LAST;
    while last > 0 {
        let mut is_idle = true;
        for pipe in &mut *pipes {
            match pipe.read(&mut chunk) {
                Ok(length @ 1..) => {
                    is_idle = false;
                    if !write(chunk.get(..length).unwrap_or_default()) {
                        return;
                    }
                    if is_ready(stopped, PollTimeout::ZERO) {
                        last = last.saturating_sub(length);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => is_idle = false,
                Ok(_) | Err(_) => return,
            }
        }
        if is_idle {
            let mut waits: Vec<PollFd<'_>> =
                pipes.iter().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)).collect();
            waits.push(PollFd::new(stopped.as_fd(), PollFlags::POLLIN));
            let _ = poll(&mut waits, PollTimeout::NONE);
            let is_ready = |wait: &PollFd<'_>| wait.any().unwrap_or(false);
            if let Some((stopped, pipes)) = waits.split_last()
                && is_ready(stopped)
                && !pipes.iter().any(is_ready)
            {
                return;
            }
        }
    }
}
