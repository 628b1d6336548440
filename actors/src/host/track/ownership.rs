//! Attributes processes to runs: authorises `sd_notify` senders, verifies PID-file daemons by token.
//!
//! What a file or a message says is only a hint. A process belongs to a run if it carries the token of that run.

use std::sync::{PoisonError, atomic::Ordering};

use gaggled_core::{
    base::ids::{InstanceId, ProgramId},
    host::{HostEvent, probe::ProbeError},
    process::StartTime,
};
use nix::unistd::{geteuid, getpid, getppid};

use crate::host::{
    procfs,
    recover::flight_recorder::RunSlot,
    spawn::{
        pid_file,
        token::{self, Token},
    },
    track::{orphan_watch::OrphanWatch, process_table::MainProcess, process_tree::hold, tracker::ProcessTracker},
};

impl ProcessTracker {
    /// The run of a program for which a process may send messages: it is the main process, carries the token of the
    /// run, or has ended by now and was of a user that the run could have.
    pub(crate) fn authorised_sender(&self, program: ProgramId, pid: i32, uid: u32) -> Option<InstanceId> {
        let mut table = self.table();
        // It may send before its start has been reported.
        while self.in_flight.load(Ordering::SeqCst) == pid {
            table = self.registered.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        let main = *table.pid_of.get(&program)?;
        let instance = table.by_pid.get(&main)?.instance;
        if pid == main {
            return Some(instance);
        }
        let token = Token::of(pid, &self.journal);
        let carries = |token: Token| token.instance == instance && token.program == self.programs[program].name;
        let is_gone = || procfs::stat(pid).is_none_or(|stat| stat.is_zombie());
        let could_be = [0, geteuid().as_raw(), self.programs[program].uid].contains(&uid);
        token.map_or_else(|| is_gone() && could_be, carries).then_some(instance)
    }

    /// Makes the process that a pid file names the main process of a run, or returns why it cannot be that. `None` if
    /// the run does not await a daemon any more.
    pub(crate) fn adopt_daemon(
        &self,
        program: ProgramId,
        instance: InstanceId,
        named: pid_file::PidFileEntry,
    ) -> Option<Result<(), ProbeError>> {
        let mut table = self.table();
        let (main, process) =
            table.find(program, instance).filter(|(_, process)| process.stage == MainProcess::AwaitingDaemon)?;
        let (own, start_time, may_be_orphaned) = (process.own, process.start_time, process.may_be_orphaned);
        let pid = named.pid;
        let Some(stat) = procfs::stat(pid).filter(|stat| !stat.is_zombie()) else {
            return Some(Err(ProbeError::NoSuchProcess(pid)));
        };
        let known = table.by_pid.contains_key(&pid) || table.helpers.contains_key(&pid);
        // A process that is older than the command cannot be its daemon.
        if known || stat.start_time.0 < start_time.0 || !self.belongs(program, instance, named) {
            return Some(Err(ProbeError::ForeignProcess(pid)));
        }
        // We reap our own children, and the subreaper reports its. After both were killed the daemon is a child of
        // init, and its parent does not show whose it is.
        let parent = if own { getpid() } else { getppid() }.as_raw();
        let is_orphan = stat.parent != parent;
        let may_be_ours =
            || self.carries_token(program, instance, pid) || may_be_orphaned && self.vouches(program, named);
        if is_orphan && (own || !may_be_ours() || !self.watch_orphan(pid, stat.start_time)) {
            return Some(Err(ProbeError::ForeignProcess(pid)));
        }
        let daemon = table.remove(main)?.replaced_by(pid, &stat);
        self.recorder.write(program, RunSlot { instance, pid, ended: None });
        self.report(&daemon, HostEvent::Daemonized { pid, start_time: stat.start_time });
        table.insert(pid, daemon);
        Some(Ok(()))
    }

    fn carries_token(&self, program: ProgramId, instance: InstanceId, pid: i32) -> bool {
        let token = Token::of(pid, &self.journal);
        token.is_some_and(|token| token.instance == instance && token.program == self.programs[program].name)
    }

    /// Whether only the user of a program, root or gaggled could have written its pid file, so that no other user can
    /// choose which process is taken for the daemon.
    fn vouches(&self, program: ProgramId, named: pid_file::PidFileEntry) -> bool {
        [self.programs[program].uid, 0, geteuid().as_raw()].contains(&named.owner)
    }

    /// Watches for the end of a process that neither we nor the subreaper will reap.
    fn watch_orphan(&self, pid: i32, start_time: StartTime) -> bool {
        let Some(shared) = self.own.upgrade() else { return false };
        let held = hold(pid, start_time).map(|held| vec![(pid, held)]);
        held.is_some_and(|orphans| OrphanWatch { pipe: None, orphans }.start(shared, || ()).is_ok())
    }

    /// Whether a process belongs to a run. It must carry the run's token, or, if it has overwritten its environment,
    /// the program must be allowed to kill it, and no other user may have written the pid file.
    fn belongs(&self, program: ProgramId, instance: InstanceId, named: pid_file::PidFileEntry) -> bool {
        let programs = &self.programs[program];
        // Read once, because a process has no environment for a moment while it executes a command.
        if let Some(value) = procfs::variable(named.pid, token::VARIABLE) {
            let token = Token::read(&value, &self.journal);
            return token.is_some_and(|token| token.instance == instance && token.program == programs.name);
        }
        let Some(uid) = procfs::uid(named.pid) else { return false };
        let powerful = [0, geteuid().as_raw()];
        let within_reach = uid == programs.uid || powerful.contains(&programs.uid);
        within_reach && (named.owner == uid || powerful.contains(&named.owner))
    }
}
