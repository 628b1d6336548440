//! The interface between the rules and a host, which owns processes: commands and reports.
//!
//! There is no implementation here. The real host is in the actors crate, a simulated one in the tests.

mod command;
mod exit_policy;
mod launch_spec;
pub mod probe;
mod report;

pub use self::{
    command::HostCommand,
    exit_policy::{Ending, ExitAction, ExitPolicy},
    launch_spec::{LaunchSpec, LogTarget, PidFile},
    report::{HostEvent, HostReport, Recovered},
};

/// What an owner of processes implements. It sends its [`HostReport`]s over a channel that it was given when it was
/// made.
pub trait Host {
    /// Carries out an effect. Must not block.
    fn execute(&mut self, command: HostCommand);

    /// Called once: from now on the host may send reports.
    fn start(&mut self) {}
}
