//! The host: the actor that owns the processes of this machine.
//!
//! Only here is there anything unsafe, in `kernel`, because the kernel offers no other way to start a process at the
//! same price whatever the size of the daemon.

mod attendant;
pub mod cgroup;
mod kernel;
mod kinship;
mod linux;
mod living;
mod members;
mod pid_file;
mod proc;
mod reaper;
mod recorder;
mod shared;
mod starter;
mod stash;
mod survivors;
mod token;
mod watch;

use std::time::Duration;

use actix::{Actor, Context, Handler, Message};
use gaggled_core::{
    host::Processes,
    ids::{ProgramId, Table},
};

pub use self::{
    attendant::notify_directory,
    kernel::{ignore_file_limit, ignore_interrupts, inherited, peek_ended, reap},
    linux::{
        DESCRIPTORS_MIN, Environment, Inheritance, LinuxHost, Survivor, become_subreaper, close_on_exec,
        raise_descriptors,
    },
    recorder::Recorder,
    stash::Stash,
    survivors::{Before, bearers, look, strangers},
    watch::{LauncherPipe, decode_reaped, encode_reaped},
};
use crate::{
    root::Connect,
    shell::{Perform, Saw},
};

/// The actor that owns processes.
pub struct HostActor<P> {
    processes: P,
    programs: Table<ProgramId, actix::Recipient<Saw>>,
}

impl<P: Processes> HostActor<P> {
    /// The actor around what can start processes.
    pub fn new(processes: P) -> Self {
        Self { processes, programs: Table::default() }
    }
}

impl<P: Unpin + 'static> Actor for HostActor<P> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        // What waits here is bounded by the number of programs: each has at most one command and one report under way.
        ctx.set_mailbox_capacity(0);
    }
}

/// Carry out what was asked for, and leave everything else to the next life.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct HandOver(pub Duration);

impl Handler<HandOver> for HostActor<LinuxHost> {
    type Result = ();
    fn handle(&mut self, HandOver(within): HandOver, _: &mut Context<Self>) {
        self.processes.hand_over(within);
    }
}

impl<P: Processes + Unpin + 'static> Handler<Connect> for HostActor<P> {
    type Result = ();
    fn handle(&mut self, Connect(programs): Connect, _: &mut Context<Self>) {
        self.programs = programs;
        self.processes.begin();
    }
}

impl<P: Processes + Unpin + 'static> Handler<Perform> for HostActor<P> {
    type Result = ();
    fn handle(&mut self, Perform(command): Perform, _: &mut Context<Self>) {
        self.processes.perform(command);
    }
}

impl<P: Unpin + 'static> Handler<Saw> for HostActor<P> {
    type Result = ();
    fn handle(&mut self, saw: Saw, _: &mut Context<Self>) {
        if let Some(program) = self.programs.get(saw.0.program) {
            program.do_send(saw);
        }
    }
}
