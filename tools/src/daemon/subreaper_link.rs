//! The descriptors that the daemon has from its subreaper.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::OwnedFd,
    path::PathBuf,
};

use gaggled_actors::host::{self, Stash};

use super::subreaper::{DaemonStatus, HandoffFile, InheritedFds};

/// The descriptors from the subreaper.
pub(super) struct SubreaperLink {
    pub pipe: File,
    pub recorder: File,
    pub handoff_file: File,
    /// The sockets that the previous daemon has kept; taken once.
    pub stash: Stash,
    /// What the previous daemon has written, if there was one under this subreaper.
    pub before: Option<HandoffFile>,
    /// The path that the binary was found at.
    pub binary: PathBuf,
}

impl SubreaperLink {
    /// Opens the descriptors from the subreaper.
    pub(super) fn new(position: InheritedFds) -> io::Result<Self> {
        let open = |fd: i32, write| OpenOptions::new().read(true).write(write).open(format!("/proc/self/fd/{fd}"));
        let handoff_file = open(position.handoff_file, true)?;
        let pipe = open(position.pipe, false)?;
        nix::fcntl::fcntl(&pipe, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        let [into, out_of] = position.stash.map(host::inherited);
        let stash = into.zip(out_of).map_or_else(Stash::default, |(into, out_of)| Stash::new(into, out_of));
        let before = if position.again { HandoffFile::read(&handoff_file).ok() } else { None };
        // A daemon that died before it was up has left nothing.
        let before = before.filter(|before| !before.state.is_empty());
        Ok(Self {
            pipe,
            recorder: open(position.recorder, true)?,
            handoff_file,
            stash,
            before,
            binary: position.binary,
        })
    }

    /// The ends of the stash, for a subreaper that follows.
    pub(super) fn stash(&self) -> Option<(OwnedFd, OwnedFd)> {
        self.stash.try_clone().ok().flatten()
    }

    /// Records that gaggled ends and is not to be started again.
    pub(super) fn end(&self) {
        self.write(&HandoffFile { status: DaemonStatus::Exiting, ..self.before.clone().unwrap_or_default() });
    }

    /// Records how far this daemon is, for the next one.
    pub(super) fn write(&self, handoff_file: &HandoffFile) {
        // If this fails, the next daemon only lacks this information.
        let _ = handoff_file.write(&self.handoff_file);
    }
}
