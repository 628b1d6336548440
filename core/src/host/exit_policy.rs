//! What a host does with a run whose main process has ended.

use crate::{
    graph::{Leaves, Policy},
    process::ExitStatus,
};

/// Whether, and how, a run was made to end before its main process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// It was not made to end.
    No,
    /// An operator has sent it a signal that may end it: processes that it leaves behind are not kept.
    Signalled,
    /// It was asked to end: processes that it leaves behind have time to end as well.
    Asked,
    /// The time to end is over, or an operator has killed it.
    Killed,
}

/// What the host does after the end of the main process of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitAction {
    /// Find the daemon that the command has left: it is the main process from then on.
    AwaitDaemon,
    /// Count the processes it has left, which run on as part of its effects, and report the end of the run.
    Keep,
    /// Report the end of the run at once: gaggled no longer manages the processes it has left.
    Release,
    /// Wait until the processes it has left, which were asked to end, have ended or their time is over; then report the
    /// end.
    AwaitRest,
    /// Kill the processes it has left, and then report the end.
    KillRest,
}

/// The part of a program's configuration that decides about the end of its runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExitPolicy {
    /// Whether its command leaves a daemon behind, which is the main process from then on.
    pub daemonizes: bool,
    /// What becomes of processes that a run leaves when it has ended well.
    pub leaves: Leaves,
    /// The exit codes that mean success; only 0 if there is none.
    pub success_exit_codes: Vec<i32>,
}

impl ExitPolicy {
    /// What to do when the main process ends with this status. `is_command`: the main process was the command itself,
    /// not the daemon that it has left.
    pub fn action(&self, status: ExitStatus, ending: Ending, is_command: bool) -> ExitAction {
        // Older kernels do not report the exit status of a process whose parent has died.
        let may_be_well = status.is_success() || status == ExitStatus::Unknown;
        if self.daemonizes && is_command && may_be_well && ending <= Ending::Signalled {
            return ExitAction::AwaitDaemon;
        }
        match self.leaves {
            Leaves::Keep if self.is_kept(status, ending) => ExitAction::Keep,
            Leaves::Release if self.is_kept(status, ending) => ExitAction::Release,
            Leaves::Kill | Leaves::Keep | Leaves::Release if ending == Ending::Asked => ExitAction::AwaitRest,
            Leaves::Kill | Leaves::Keep | Leaves::Release => ExitAction::KillRest,
        }
    }

    /// Whether the processes that a run leaves are kept or released when it has ended like this.
    pub fn is_kept(&self, status: ExitStatus, ending: Ending) -> bool {
        self.leaves != Leaves::Kill && ending == Ending::No && status.is_one_of(&self.success_exit_codes)
    }
}

impl From<&Policy> for ExitPolicy {
    fn from(policy: &Policy) -> Self {
        Self {
            daemonizes: policy.health.daemonizes,
            leaves: policy.leaves,
            success_exit_codes: policy.success_exit_codes.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: ExitStatus = ExitStatus::Code(0);
    const BADLY: ExitStatus = ExitStatus::Code(1);

    #[test]
    fn a_daemon_is_looked_for_after_a_command_that_may_have_left_one() {
        let exit = ExitPolicy { daemonizes: true, ..ExitPolicy::default() };
        for (status, ending, is_command, expected) in [
            (WELL, Ending::No, true, ExitAction::AwaitDaemon),
            (ExitStatus::Unknown, Ending::No, true, ExitAction::AwaitDaemon),
            (WELL, Ending::Signalled, true, ExitAction::AwaitDaemon),
            (WELL, Ending::No, false, ExitAction::KillRest),
            (BADLY, Ending::No, true, ExitAction::KillRest),
            (ExitStatus::Signal(15), Ending::Signalled, true, ExitAction::KillRest),
            (WELL, Ending::Asked, true, ExitAction::AwaitRest),
            (WELL, Ending::Killed, true, ExitAction::KillRest),
        ] {
            assert_eq!(exit.action(status, ending, is_command), expected, "{status:?} {ending:?} {is_command}");
        }
    }

    #[test]
    fn what_a_run_leaves_is_kept_only_if_it_ends_well_by_itself() {
        for (leaves, kept) in [
            (Leaves::Keep, ExitAction::Keep),
            (Leaves::Release, ExitAction::Release),
            (Leaves::Kill, ExitAction::KillRest),
        ] {
            let exit = ExitPolicy { leaves, success_exit_codes: vec![0, 3], ..ExitPolicy::default() };
            assert_eq!(exit.action(ExitStatus::Code(3), Ending::No, true), kept);
            assert_eq!(exit.action(BADLY, Ending::No, true), ExitAction::KillRest);
            assert_eq!(exit.action(WELL, Ending::Signalled, true), ExitAction::KillRest);
            assert_eq!(exit.action(WELL, Ending::Asked, true), ExitAction::AwaitRest);
            assert_eq!(exit.action(WELL, Ending::Killed, true), ExitAction::KillRest);
        }
    }
}
