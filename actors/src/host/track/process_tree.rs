//! Process trees, held by descriptors so that no signal reaches another process that gets the same id later.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, OwnedFd},
};

use gaggled_core::{
    base::ids::InstanceId,
    process::{Signal as StopSignal, StartTime},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use crate::host::procfs::{self, Stat};

/// Processes that carry tokens and have lost their parents, with everything below them, by program and run.
pub(crate) type ProcessesByToken = BTreeMap<(String, InstanceId), BTreeMap<i32, Stat>>;

/// A process that cannot be mistaken for another that gets its id later.
pub(crate) struct Held {
    pub(crate) pid: i32,
    pub(crate) start_time: StartTime,
    process: OwnedFd,
}

impl Held {
    /// Holds a process that was seen, if it is still there.
    pub(crate) fn new(pid: i32, stat: &Stat) -> Option<Self> {
        let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        let is_same = procfs::stat(pid).is_some_and(|now| now.start_time == stat.start_time && !now.is_zombie());
        is_same.then_some(Self { pid, start_time: stat.start_time, process })
    }

    /// Asks it to end. A stopped process is continued, so that it can handle that.
    pub(crate) fn terminate(&self, signal: StopSignal) {
        let signal = Signal::from_named_raw(signal.0).unwrap_or(Signal::TERM);
        let _ = pidfd_send_signal(&self.process, signal);
        let _ = pidfd_send_signal(&self.process, Signal::CONT);
    }

    /// Kills it, if it is still there.
    pub(crate) fn kill(&self) {
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }
}

/// Holds a process, so that its id is not mistaken for that of another. `None` if it is gone, also if its id has been
/// reused.
pub(crate) fn hold(pid: i32, start_time: StartTime) -> Option<OwnedFd> {
    let held = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty());
    held.ok().filter(|_| procfs::start_time(pid) == start_time)
}

/// All descendants of a process, except orphans.
pub(crate) fn descendants(root: i32, found: &mut BTreeMap<i32, Stat>) {
    let mut pending = vec![root];
    let mut seen = BTreeSet::new();
    while let Some(parent) = pending.pop() {
        for child in procfs::all_children(parent) {
            if seen.insert(child)
                && let Some(stat) = procfs::stat(child)
            {
                found.insert(child, stat);
                pending.push(child);
            }
        }
    }
}

/// Waits until all of these have ended, for each at most this long.
pub(crate) fn wait_for(left: &[Held], timeout: PollTimeout) {
    for held in left {
        let mut waits = [PollFd::new(held.process.as_fd(), PollFlags::POLLIN)];
        while poll(&mut waits, timeout) == Err(nix::errno::Errno::EINTR) {}
    }
}

/// Kills a stop command or a check, with all its descendants.
pub(crate) fn kill_tree(root: i32) {
    let mut found = BTreeMap::new();
    descendants(root, &mut found);
    kill_group(root);
    for (pid, stat) in found {
        if let Some(held) = Held::new(pid, &stat) {
            held.kill();
        }
    }
}

/// Kills what is left of the group of a helper, whose number is not given again as long as the group exists.
pub(crate) fn kill_group(pid: i32) {
    let _ = Pid::from_raw(pid).map(|group| kill_process_group(group, Signal::KILL));
}
