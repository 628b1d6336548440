//! The host: the actor that owns the processes of this machine.
//!
//! All unsafe code is in `spawn::sys`, because no safe interface starts a process at a cost that is independent of the
//! size of the daemon.

pub mod cgroup;
mod linux;
mod messages;
mod monitor;
mod procfs;
mod recover;
mod spawn;
mod track;

use std::time::Duration;

use actix::{Actor, Context, Handler, Message};
use gaggled_core::{
    base::ids::{IdVec, ProgramId},
    host::Host,
};

pub use self::{
    linux::{DESCRIPTORS_MIN, LinuxHost, TakeoverState, become_subreaper, close_on_exec, raise_descriptors},
    messages::{Environment, PermitCheck, SurvivingProcess},
    monitor::notify_directory,
    recover::{
        flight_recorder::Recorder,
        kill_runs::kill_runs,
        scan::{PreviousRun, ScanResult, look, strangers, tagged_processes},
        stash::Stash,
    },
    spawn::sys::{ignore_file_limit, ignore_interrupts, inherited, peek_exited, reap},
    spawn::token::public_id,
    track::orphan_watch::{ExitPipe, decode_reaped, encode_reaped},
};
use crate::messages::{Connect, Execute, HostReported};

/// The actor that owns processes.
pub struct HostActor<P> {
    processes: P,
    programs: IdVec<ProgramId, actix::Recipient<HostReported>>,
}

impl<P: Host> HostActor<P> {
    /// The actor around what can start processes.
    pub fn new(processes: P) -> Self {
        Self { processes, programs: IdVec::default() }
    }
}

impl<P: Unpin + 'static> Actor for HostActor<P> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        // No limit: the host may not lose a report. Each program has at most one command under way, and few reports.
        ctx.set_mailbox_capacity(0);
    }
}

/// Carry out the commands so far, within this time, and leave everything else to the next daemon.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct HandOver(pub Duration);

impl Handler<HandOver> for HostActor<LinuxHost> {
    type Result = ();
    fn handle(&mut self, HandOver(within): HandOver, _: &mut Context<Self>) {
        self.processes.hand_over(within);
    }
}

impl<P: Host + Unpin + 'static> Handler<Connect> for HostActor<P> {
    type Result = ();
    fn handle(&mut self, Connect(programs): Connect, _: &mut Context<Self>) {
        self.programs = programs;
        self.processes.start();
    }
}

impl<P: Host + Unpin + 'static> Handler<Execute> for HostActor<P> {
    type Result = ();
    fn handle(&mut self, Execute(command): Execute, _: &mut Context<Self>) {
        self.processes.execute(command);
    }
}

impl<P: Unpin + 'static> Handler<HostReported> for HostActor<P> {
    type Result = ();
    fn handle(&mut self, saw: HostReported, _: &mut Context<Self>) {
        if let Some(program) = self.programs.get(saw.0.program) {
            program.do_send(saw);
        }
    }
}
