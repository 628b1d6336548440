//! Where the logger writes, and how it waits for what it reads.

use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A destination for log output.
pub trait Sink: Send {
    /// Writes a chunk; what cannot be written is counted. False if nothing more can be written before this process ends,
    /// so that the rest is better left in the pipe.
    fn write(&mut self, chunk: &[u8]) -> bool;
    /// Records how many bytes were dropped before they reached this sink.
    fn dropped(&mut self, bytes: u64);
    /// There is nothing more.
    fn end(&mut self);
}

/// Whether a descriptor can be read, or its other end is closed, within a time.
pub(super) fn is_ready(file: &OwnedFd, within: PollTimeout) -> bool {
    let mut waits = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    poll(&mut waits, within).is_ok_and(|count| count > 0)
}
